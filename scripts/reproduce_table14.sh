#!/usr/bin/env bash
# scripts/reproduce_table14.sh runs/table14 stream.root=ImageNet-C        see scripts/reproduce.py and scripts/studies.yaml
exec python "$(dirname "$0")/reproduce.py" table14 "$@"
