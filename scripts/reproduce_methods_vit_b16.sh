#!/usr/bin/env bash
# scripts/reproduce_methods_vit_b16.sh runs/methods_vit_b16 stream.root=ImageNet-C        see scripts/reproduce.py and scripts/studies.yaml
exec python "$(dirname "$0")/reproduce.py" methods_vit_b16 "$@"
