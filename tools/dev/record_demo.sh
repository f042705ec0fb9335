#!/usr/bin/env bash
# Record docs/demo.svg: fine-tune a classifier on digits and predict with it.
# Usage: tools/dev/record_demo.sh DIGITS WEIGHTS
# DIGITS is data/digits/classification of tools/prepare_digits.py, WEIGHTS a checkpoint of M0.
# Needs pip install termtosvg "setuptools<81". The commands run in a temporary folder. Pauses are
# shortened to 0.7 seconds.
set -euo pipefail
svg=$(realpath "$(dirname "$0")/../../docs")/demo.svg
if [ "$1" != --play ]; then
    folder=$(mktemp -d)
    cp -r "$1" "$folder/digits"
    cp "$2" "$folder/m0.pth"
    script=$(realpath "$0")
    cd "$folder"
    termtosvg "$svg" -c "bash $script --play" -g 92x22 -m 110 -M 700 -D 5000 -t window_frame
    rm -r "$folder"
    exit
fi

run() {
    printf '\e[32m$\e[0m '
    for ((i = 0; i < ${#1}; i++)); do
        printf '%s' "${1:i:1}"
        sleep 0.03
    done
    sleep 0.5
    echo
    eval "$1"
    echo
}

run 'ls digits digits/train'
run 'mmevit finetune digits --weights m0.pth --epochs 6 --image-size 64 --no-flip 2>&1 |
    grep -oE "Epoch.val.*top1: [0-9.]+|^The .*"'
run 'mmevit infer work_dirs/digits/*.py work_dirs/digits/best*.pth digits/val/7'
run 'grep -oh "pred_class.*" outputs/preds/*.json | sort | uniq -c'
sleep 1
