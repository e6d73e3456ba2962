#!/usr/bin/env bash
# Every method on CIFAR-10, those that take an objective with EM and with AdaDEM; three seeds, single-domain and
# continual.
#
#     scripts/reproduce_methods.sh cifar10_test.npz cifar10_train.npz resnet18_w16_cifar10.safetensors runs/methods
#
# 5 corruptions, 2 000 images each, made here from the clean test images; a narrow ResNet-18; Adam with the learning
# rate of the official CIFAR-10 runs, 0.001, for all (scripts/reproduce_objectives.sh has the objectives over a grid).
# EATA's Fisher information comes from the training images. RDumb, which is ETA for its first 1 000 batches, begins anew
# after 50 of the 100 there are. Methods that forward many views of an image see fewer images (CoTTA 1 000 of each
# corruption, MEMO 200), and have tables of their own, with both baselines. Finished runs are found again, so it can be
# stopped and started. Ends with tables and figures in runs/methods/<scenario>, <scenario>_cotta and <scenario>_memo.
set -euo pipefail
data=$1 clean=$2 checkpoint=$3 runs=$4
corruptions=(gaussian_noise defocus_blur snow contrast jpeg_compression)

python "$(dirname "$0")/make_corrupted.py" "$data" --out "$runs/data" --limit 2000 --corruptions "${corruptions[@]}"
common=(
    stream=cifar10_c "stream.root=$runs/data" "stream.corruptions=[$(IFS=,; echo "${corruptions[*]}")]"
    stream.batch_size=100 model=resnet18_w16_cifar10 "model.checkpoint=$checkpoint" optimizer=adam seed=0,1,2
)
for scenario in single_domain continual; do
    there=("${common[@]}" scenario="$scenario" "runs_dir=$runs/$scenario")
    tta -m "${there[@]}" method=source,bn_adapt,bn_alpha,bn_ema,lame,t3a,rotta,roid
    tta -m "${there[@]}" objective=em,adadem method=tent,eta,sar,deyo
    tta -m "${there[@]}" objective=em,adadem method=eata "method.fisher.root=$clean"
    tta -m "${there[@]}" objective=em,adadem method=rdumb method.reset_every=50
    tta-compare "$runs/$scenario" --figures --html
    for few in cotta:1000 memo:200; do
        method=${few%:*} limit=${few#*:}
        tta -m "${there[@]}" method="source,bn_adapt,$method" stream.limit="$limit" "runs_dir=$runs/${scenario}_$method"
        tta-compare "$runs/${scenario}_$method" --figures --html
    done
done
