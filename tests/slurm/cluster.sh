#!/usr/bin/env bash
# A Slurm cluster of this machine alone, for tests: cluster.sh start|stop <folder>. As root; Debian: slurm-wlm, munge.
# Jobs of a partition `main` share the node's processors two at a time, whatever the machine has.
set -euo pipefail
folder=$2
run() { # daemons get nothing of ours: no open files, no signals of the terminal
    setsid "$@" </dev/null >>"$folder/daemons.log" 2>&1
}
case $1 in
start)
    mkdir -p "$folder"/{state,spool}
    (umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
    cat >"$folder/slurm.conf" <<EOF
ClusterName=test
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=root
SlurmctldPort=$((20000 + $$ % 20000))
SlurmdPort=$((20001 + $$ % 20000))
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobRequeue=1
KillWait=20
MinJobAge=3600
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_interval=2
NodeName=$(hostname -s) NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
EOF
    run munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
        --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"
    export SLURM_CONF=$folder/slurm.conf
    run slurmctld -c -f "$SLURM_CONF"
    run slurmd -c -f "$SLURM_CONF"
    for _ in $(seq 60); do
        sinfo -h -o %T 2>/dev/null | grep -q idle && exit 0
        sleep 0.5
    done
    tail -n 5 "$folder"/*.log >&2
    exit 1
    ;;
stop)
    export SLURM_CONF=$folder/slurm.conf
    scancel --state=RUNNING,PENDING,SUSPENDED --user=root 2>/dev/null || true
    for daemon in slurmd slurmctld munged; do
        [ -f "$folder/$daemon.pid" ] && kill "$(cat "$folder/$daemon.pid")" 2>/dev/null || true
    done
    ;;
esac
