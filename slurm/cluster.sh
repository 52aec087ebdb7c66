# What a site edits, read by every script in this folder: how to get Python, and the network.

# The environment that `make .venv/.installed` makes; or: module load python && source .../activate
source .venv/bin/activate

# One process per GPU, or one where there is none.
PROCESSES_PER_NODE=${SLURM_GPUS_ON_NODE:-1}

# export NCCL_SOCKET_IFNAME=ib0          # where NCCL does not find the fast network by itself
# export GLOO_SOCKET_IFNAME=eth0         # likewise for gloo, which carries objects between ranks
# export HF_HUB_OFFLINE=1                # compute nodes without internet: models come from the cache

# `on_all_nodes launch.train "$@"`: one torchrun per node, joined at the first node.
on_all_nodes() {
    local first
    first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    # The configured address: a node's name need not resolve.
    MASTER_ADDR=$(scontrol -o show node "$first" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
    # Two jobs may share a node, and a requeued job starts again at once.
    MASTER_PORT=$((20000 + (SLURM_JOB_ID * 7 + ${SLURM_RESTART_COUNT:-0}) % 10000))
    export MASTER_ADDR MASTER_PORT PROCESSES_PER_NODE PYTHONUNBUFFERED=1
    # srun does not take the cores per task from sbatch (Slurm 22.05 and later).
    export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
    # Static rendezvous: node k holds the same ranks after every restart.
    # shellcheck disable=SC2016 # the node's own number is known on the node
    srun --kill-on-bad-exit=1 bash -c 'exec torchrun \
        --nnodes="$SLURM_NNODES" --nproc-per-node="$PROCESSES_PER_NODE" \
        --node-rank="$SLURM_NODEID" --rdzv-backend=static --max-restarts=0 \
        --master-addr="$MASTER_ADDR" --master-port="$MASTER_PORT" -m "$@"' _ "$@"
}
