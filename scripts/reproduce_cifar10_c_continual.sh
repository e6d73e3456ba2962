#!/usr/bin/env bash
# scripts/reproduce_cifar10_c_continual.sh runs/cifar10_c_continual stream.root=CIFAR-10-C        see scripts/reproduce.py and scripts/studies.yaml
exec python "$(dirname "$0")/reproduce.py" cifar10_c_continual "$@"
