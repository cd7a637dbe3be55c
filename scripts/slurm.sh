#!/usr/bin/env bash
#SBATCH --job-name=train_clip
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --time=12:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
# Trains on the nodes of a SLURM job, and goes on in another job when the time is up:
#   sbatch scripts/slurm.sh NAME --pretrained W.bin --train-data data.csv …
# SLURM sends SIGUSR1 five minutes before the end (--signal); the run saves, ends with 138 = 128 + SIGUSR1, and the job is put
# back into the queue. PROGRAM names another train_clip (make MPI=1), LOGS another folder of runs; all nodes must see them.
set -u
if [ $# -lt 3 ]; then
    echo "usage: sbatch scripts/slurm.sh NAME OPTION…    options of train_clip without --name, --logs and --resume" >&2
    exit 2
fi
program=${PROGRAM:-./train_clip} logs=${LOGS:-logs} name=$1
shift
if compgen -G "$logs/$name/checkpoints/*.state" >/dev/null; then set -- "$@" --resume latest; fi
srun --kill-on-bad-exit=1 "$program" "$@" --logs "$logs" --name "$name"
code=$?
if [ $code = 138 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit $code
