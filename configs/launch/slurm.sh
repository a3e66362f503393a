#!/bin/bash
# A run on two nodes of eight GPUs that goes on where it was when its time is up:
# sbatch configs/launch/slurm.sh configs/images/al_c.yaml [any option of alws fit]
#SBATCH --job-name=alws
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append

# SIGUSR1 reaches every process 120 seconds before the end: each finishes its batch, the run is saved, and alws ends
# with status 128 + 10. The job then asks to be run again; one command begins the run and goes on with it.
config=$1
shift
srun alws fit --config "$config" --config configs/launch/ddp.yaml \
    --trainer.num_nodes "$SLURM_JOB_NUM_NODES" --trainer.devices "$SLURM_NTASKS_PER_NODE" \
    --trainer.enable_progress_bar false --name "$SLURM_JOB_NAME-$SLURM_JOB_ID" \
    --ckpt_path last --begin_anew true "$@"
status=$?
if [ "$status" -eq 138 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
