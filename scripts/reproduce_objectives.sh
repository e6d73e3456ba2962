#!/usr/bin/env bash
# The objectives in Tent on CIFAR-10, each over a grid of learning rates, three seeds, single-domain and continual.
#
#     scripts/reproduce_objectives.sh cifar10_test.npz resnet18_w16_cifar10.safetensors runs/objectives
#
# 5 corruptions, 2 000 images each, made here from the clean images; a narrow ResNet-18. Finished runs are found again,
# so it can be stopped and started. Ends with a table and figures for each scenario in runs/objectives/<scenario>.
set -euo pipefail
data=$1 checkpoint=$2 runs=$3
corruptions=(gaussian_noise defocus_blur snow contrast jpeg_compression)

python "$(dirname "$0")/make_corrupted.py" "$data" --out "$runs/data" --limit 2000 --corruptions "${corruptions[@]}"
common=(
    stream=cifar10_c "stream.root=$runs/data" "stream.corruptions=[$(IFS=,; echo "${corruptions[*]}")]"
    stream.batch_size=100 model=resnet18_w16_cifar10 "model.checkpoint=$checkpoint" seed=0,1,2
)
for scenario in single_domain continual; do
    there=(scenario="$scenario" "runs_dir=$runs/$scenario")
    tta -m "${common[@]}" "${there[@]}" method=source,bn_adapt
    tta -m "${common[@]}" "${there[@]}" method=tent objective=em,cadf,adadem_norm,adadem_mec,adadem \
        optimizer.lr=0.0005,0.001,0.0025,0.005,0.01,0.02,0.05,0.1
    tta-compare "$runs/$scenario" --figures --html
done
