#!/usr/bin/env python3
"""Runs a command on a cluster of its own: three hosts on this machine, joined by a network.

usage: with_hosts.py [--slurm] COMMAND...

The command runs on the host `head`. `n1` and `n2` have 16 processors and 8 pretended GPUs each, as far as
Slurm is told. Each host has a name, an address, processes, shared memory, /tmp and a network of its own; /mnt
is a disk that they share. With --slurm a private Slurm runs: srun, sbatch and salloc find it. AWEX_AGENT names
a program that runs a command on a host as ssh does, also for mpirun.

Needs root and the Debian packages iproute2, and munge and slurm-wlm for Slurm. Returns what the command
returns, or 77 where there can be no such hosts. However it ends, nothing that it started is left: all is in one
PID namespace, and all files are in memory of one mount namespace.
"""

import argparse
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

HOSTS = {"head": "10.77.0.1", "n1": "10.77.0.11", "n2": "10.77.0.12"}
DISK = pathlib.Path("/mnt")
CLUSTER = DISK / "cluster"
START_LIMIT_S = 60
SKIPPED = 77
NAMESPACES = ("--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
              "--propagation", "private")

# As mpirun calls ssh: HOST COMMAND, the latter for a shell.
AGENT = f"""#!/bin/sh
host=$1
shift
exec nsenter --target "$(cat {CLUSTER}/"$host".pid)" --net --uts --ipc --mount --pid -- sh -c "$*"
"""

SLURM_CONF = """ClusterName=test
SlurmctldHost=head
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={here}/munge.sock
CredType=cred/munge
StateSaveLocation={here}/state
SlurmdSpoolDir={here}/spool-%n
SlurmctldPidFile={here}/slurmctld.pid
SlurmdPidFile={here}/slurmd-%n.pid
SlurmctldLogFile={here}/slurmctld.log
SlurmdLogFile={here}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill,UsePss
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=10
MessageTimeout=60
SlurmdTimeout=0
BatchStartTimeout=120
UnkillableStepTimeout=300
MinJobAge=3600
GresTypes=gpu
NodeName=n1,n2 CPUs=16 RealMemory=16000 Gres=gpu:8
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=1-0 DefMemPerCPU=500
"""


def run(*words):
    subprocess.run([str(word) for word in words], check=True, stdin=subprocess.DEVNULL)


def lacks(slurm):
    """Why there can be no such hosts; nothing when there can."""
    if os.geteuid() != 0:
        return "only root can make hosts"
    tools = ["ip", "nsenter", "setpriv", "unshare"]
    tools += ["munged", "slurmctld", "slurmd", "srun"] if slurm else []
    missing = [tool for tool in tools if not shutil.which(tool)]
    if missing:
        return f"these programs are missing: {', '.join(missing)} (packages iproute2, munge, slurm-wlm)"
    tried = subprocess.run(["unshare", *NAMESPACES, "ip", "link", "add", "name", "v1", "type", "veth"],
                           capture_output=True, text=True, check=False)
    return f"namespaces are not allowed here: {tried.stderr.strip()}" if tried.returncode != 0 else ""


def cover(place, options, kept):
    """Puts empty memory over a directory, but keeps what `kept` (paths) needs of it."""
    names = {pathlib.Path(path).relative_to(place).parts[0] for path in kept
             if path.startswith(f"{place}/") and os.path.exists(path)}
    saved = {name: os.open(os.path.join(place, name), os.O_PATH) for name in names}
    run("mount", "-t", "tmpfs", "-o", options, "tmpfs", place)
    for name, entry in saved.items():
        target = pathlib.Path(place, name)
        if os.path.isdir(f"/proc/self/fd/{entry}"):
            target.mkdir()
        else:
            target.touch()
        subprocess.run(["mount", "--bind", "--no-canonicalize", f"/proc/self/fd/{entry}", str(target)], check=True, pass_fds=[entry])
        os.close(entry)


def cover_own(kept):
    cover("/tmp", "mode=1777", kept)
    cover("/dev/shm", "mode=1777,size=4g", [])


def start(log, *command):
    """A process of this host, whose output goes to a log of the cluster."""
    with open(CLUSTER / log, "ab") as output:
        return subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=output,
                                stderr=subprocess.STDOUT)


def wait_for(condition, what):
    give_up = time.monotonic() + START_LIMIT_S
    while not condition():
        if time.monotonic() > give_up:
            logs = "".join(f"\n{log.name}:\n{log.read_text(errors='replace')[-4000:]}"
                           for log in sorted(CLUSTER.glob("*.log")))
            sys.exit(f"after {START_LIMIT_S} s still not: {what}{logs}")
        time.sleep(0.05)


def be_host(name, kept):
    """The first process of a host: it says that it is there, and takes in the orphans."""
    run("hostname", name)
    run("ip", "link", "set", "lo", "up")
    cover_own(kept)
    subprocess.Popen(["sleep", "infinity"])  # so that there is always a child to wait for
    (CLUSTER / f"{name}.up").touch()
    while True:
        os.wait()


def start_host(name, words):
    """Its first process's pid on `head` goes to NAME.pid."""
    starter = start(f"host-{name}.log", "unshare", *NAMESPACES, sys.executable, __file__, "--host", name, *words)
    wait_for((CLUSTER / f"{name}.up").exists, f"the host {name} is there")
    children = pathlib.Path(f"/proc/{starter.pid}/task/{starter.pid}/children").read_text(encoding="ascii")
    pid = children.split()[0]
    run("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", pid)
    run("ip", "link", "set", name, "master", "wire", "up")
    run("nsenter", "--target", pid, "--net", "ip", "addr", "add", f"{HOSTS[name]}/24", "dev", "eth0")
    run("nsenter", "--target", pid, "--net", "ip", "link", "set", "eth0", "up")
    (CLUSTER / f"{name}.pid").write_text(pid, encoding="ascii")


def start_network():
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", "wire", "type", "bridge")
    run("ip", "addr", "add", f"{HOSTS['head']}/24", "dev", "wire")
    run("ip", "link", "set", "wire", "up")
    names = CLUSTER / "hosts"
    names.write_text("127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in HOSTS.items()),
                     encoding="ascii")
    run("mount", "--bind", names, "/etc/hosts")


def start_slurm():
    key = CLUSTER / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    start("munged.log", "munged", "--foreground", "--force", f"--socket={CLUSTER}/munge.sock", f"--key-file={key}",
          f"--pid-file={CLUSTER}/munged.pid", f"--seed-file={CLUSTER}/munged.seed",
          f"--log-file={CLUSTER}/munged.log")
    for index in range(8):  # Slurm ignores GPUs that have no device file
        os.mknod(CLUSTER / f"nvidia{index}", 0o20666, os.makedev(1, 3))
    (CLUSTER / "slurm.conf").write_text(SLURM_CONF.format(here=CLUSTER), encoding="ascii")
    (CLUSTER / "gres.conf").write_text(f"NodeName=n1,n2 Name=gpu File={CLUSTER}/nvidia[0-7]\n", encoding="ascii")
    # Slurm 22.05 has no plugin for none; slurmd wants one, which nothing of the above uses.
    version = "v2" if os.path.exists("/sys/fs/cgroup/cgroup.controllers") else "v1"
    (CLUSTER / "cgroup.conf").write_text(f"CgroupPlugin=cgroup/{version}\n", encoding="ascii")
    os.environ["SLURM_CONF"] = str(CLUSTER / "slurm.conf")
    os.environ["SLURM_PMIX_FENCE"] = "ring"  # as docs/cluster.md asks for
    wait_for((CLUSTER / "munge.sock").exists, "munged listens")
    start("slurmctld.out.log", "slurmctld", "-D")
    for name in ("n1", "n2"):
        (CLUSTER / f"spool-{name}").mkdir()
        start(f"slurmd-{name}.out.log", CLUSTER / "agent", name, f"SLURM_CONF={CLUSTER}/slurm.conf exec slurmd -D")

    def idle():
        nodes = subprocess.run(["sinfo", "-h", "-N", "-o", "%t"], capture_output=True, text=True, check=False)
        return nodes.stdout.split() == ["idle", "idle"]

    wait_for(idle, "Slurm's two nodes are idle")


def be_head(slurm, command):
    os.chdir(os.getcwd())
    run("hostname", "head")
    cover(str(DISK), "mode=755", [*command, os.getcwd()])
    cover_own([*command, os.getcwd()])
    os.chdir(os.getcwd())
    CLUSTER.mkdir()
    agent = CLUSTER / "agent"
    agent.write_text(AGENT, encoding="ascii")
    agent.chmod(0o755)
    start_network()
    for name in ("n1", "n2"):
        start_host(name, [*command, os.getcwd()])
    if slurm:
        start_slurm()
    os.environ["AWEX_AGENT"] = str(agent)
    return subprocess.run(command, check=False).returncode


def run_as_child(arguments):
    """Runs this program again as the first process of `head`; returns its exit code."""
    def end(number, _):
        sys.exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    # unshare ends its child with itself, but does not hear SIGTERM.
    child = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "unshare", *NAMESPACES, sys.executable, __file__,
                              "--head", *arguments])
    try:
        return child.wait()
    finally:
        child.kill()
        child.wait()


def main():
    parser = argparse.ArgumentParser(usage="with_hosts.py [--slurm] COMMAND...")
    parser.add_argument("--slurm", action="store_true")
    parser.add_argument("--head", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--host", help=argparse.SUPPRESS)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if options.host:
        return be_host(options.host, options.command)
    if not options.command:
        parser.error("no command")
    if options.head:
        return be_head(options.slurm, options.command)
    reason = lacks(options.slurm)
    if reason:
        print(f"skipped: {reason}")
        return SKIPPED
    return run_as_child(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
