#!/usr/bin/env bash
# scripts/reproduce_methods_resnet50.sh runs/methods_resnet50 stream.root=ImageNet-C        see scripts/reproduce.py and scripts/studies.yaml
exec python "$(dirname "$0")/reproduce.py" methods_resnet50 "$@"
