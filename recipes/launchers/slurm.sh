#!/bin/bash
# Trains one recipe on several machines under Slurm; after a preemption, or at the time limit, it goes on by itself.
#
#   sbatch --nodes 4 recipes/launchers/slurm.sh recipe.yaml [a.b=c]
#   ACCELERATE=zero2 sbatch --nodes 1 --gpus-per-node 4 recipes/launchers/slurm.sh recipe.yaml
#
# All machines must see the recipe, its data and its output_dir under the same paths, and an environment in which
# `python -m posttrain.recipes.cli --version` works (activate it before sbatch). What was trained since the newest
# checkpoint is trained again, so choose trainer.save_steps by what may be lost.
#SBATCH --job-name=posttrain
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=posttrain-%j.log
#SBATCH --signal=B:USR1@120
set -euo pipefail

[ $# -ge 1 ] || { echo "which recipe? sbatch slurm.sh recipe.yaml [a.b=c]" >&2; exit 2; }
export ACCELERATE=${ACCELERATE:-zero3}                      # a configuration of recipes/accelerate, or a path
export GPUS=${GPUS:-${SLURM_GPUS_ON_NODE:-8}}               # processes on each machine
export NODES=$SLURM_JOB_NUM_NODES
export HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-32}        # srun does not take it over since Slurm 22.05
export PORT=${PORT:-$((20000 + SLURM_JOB_ID % 20000))}      # jobs that share a machine do not meet

# Two minutes before the time limit this script, and not the training, gets SIGUSR1: back into the queue. The same
# command then resumes from the newest whole checkpoint.
trap 'echo "time is up; the job goes back into the queue"; scontrol requeue "$SLURM_JOB_ID"' USR1

# shellcheck disable=SC2016 # each machine reads its own SLURM_NODEID
srun --kill-on-bad-exit=1 bash -c '
  exec python -m posttrain.recipes.launch --config_file "$ACCELERATE" \
    --num_machines "$NODES" --machine_rank "$SLURM_NODEID" --num_processes $((NODES * GPUS)) \
    --main_process_ip "$HEAD" --main_process_port "$PORT" --deepspeed_multinode_launcher standard \
    -m posttrain.recipes.train "$@" --processes $((NODES * GPUS))
' posttrain "$@" &
wait $! || wait $! # the signal ends the first wait, not the training
