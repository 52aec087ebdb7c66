#!/bin/bash
# From a model to a report, as a chain of jobs, each waiting for those before it to succeed:
# the model learns everything (target) and everything but the forget rows (gold), the target
# unlearns, the result is measured, attacked and reported.
#
#   slurm/pipeline.sh FOLDER [settings of all] -- [of the fine-tuning] -- [of the unlearning] \
#       -- [of the attack]
#   slurm/pipeline.sh runs/first benchmark=tofu zero=3 -- model=meta-llama/Llama-3.2-1B-Instruct \
#       epochs=5 -- trainer=npo weighting=blur epochs=10 -- attack=relearn
#
# What a job asks for is in slurm/cluster.sh (SBATCH_OPTIONS). Prints the jobs' numbers.
set -euo pipefail
[ $# -gt 0 ] || { sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 2; }
[ -n "$1" ] || { echo "error: FOLDER is empty; see slurm/pipeline.sh" >&2; exit 2; }
source slurm/cluster.sh

folder=$1
shift
groups=(all finetune unlearn attack) all=() finetune=() unlearn=() attack=() group=0
for word in "$@"; do
    if [ "$word" = -- ]; then
        group=$((group + 1))
        [ "$group" -lt 4 ] || { echo "error: more than three --; see slurm/pipeline.sh" >&2; exit 2; }
    else
        declare -n into=${groups[group]}
        into+=("$word")
    fi
done

# submit <name> <jobs to wait for, or nothing> <file> <its arguments>
submit() {
    local options=("${SBATCH_OPTIONS[@]}" --parsable --job-name="lethe-$1")
    [ -z "$2" ] || options+=(--dependency="afterok:$2" --kill-on-invalid-dep=yes)
    shift 2
    sbatch "${options[@]}" "$@"
}

references=(target="$folder/target" gold="$folder/gold")
target=$(submit target "" slurm/train.sbatch trainer=finetune finetune_on=target \
    "${all[@]}" "${finetune[@]}" output="$folder/target")
gold=$(submit gold "" slurm/train.sbatch trainer=finetune finetune_on=gold \
    "${all[@]}" "${finetune[@]}" output="$folder/gold")
unlearned=$(submit unlearn "$target:$gold" slurm/train.sbatch \
    model=pretrained model.path="$folder/target" "${all[@]}" "${unlearn[@]}" \
    "${references[@]}" evaluate=false output="$folder/unlearned")
measured=$(submit eval "$unlearned" slurm/eval.sbatch run="$folder/unlearned" "${references[@]}")
attacked=$(submit attack "$measured" slurm/attack.sbatch run="$folder/unlearned" "${attack[@]}")
reported=$(submit report "$attacked" --time=01:00:00 --output=%x-%j.out --wrap \
    "source slurm/cluster.sh; python -m launch.report $(printf %q "$folder/unlearned") \
    --output $(printf %q "$folder/report")")
echo "target $target, gold $gold, unlearn $unlearned, eval $measured, attack $attacked," \
    "report $reported: $folder/report/index.html"
