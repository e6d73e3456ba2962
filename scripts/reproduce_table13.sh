#!/usr/bin/env bash
# scripts/reproduce_table13.sh runs/table13 stream.root=ImageNet-C        see scripts/reproduce.py and scripts/studies.yaml
exec python "$(dirname "$0")/reproduce.py" table13 "$@"
