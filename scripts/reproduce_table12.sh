#!/usr/bin/env bash
# scripts/reproduce_table12.sh runs/table12 stream.root=ImageNet-C        see scripts/reproduce.py and scripts/studies.yaml
exec python "$(dirname "$0")/reproduce.py" table12 "$@"
