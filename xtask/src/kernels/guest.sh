#!/bin/busybox sh
# The only process that a booted kernel starts: prepares what the suites expect of a machine, runs them, powers off.
# What it prints on the console is read by `boot.rs`; a line of ours starts with "guest: ".
export PATH=/sbin:/bin HOME=/tmp TMPDIR=/tmp RUST_BACKTRACE=0
export MESH_SAMPLE_BIN=/mesh/mesh-sample MESH_AGENT_BIN=/mesh/mesh-agent
b=/bin/busybox

mounted() {
    $b mkdir -p "$2"
    $b mount -t "$1" "$1" "$2" || echo "guest: cannot mount $1"
}
mounted proc /proc
mounted sysfs /sys
mounted devtmpfs /dev
mounted tmpfs /tmp
mounted tmpfs /run
mounted cgroup2 /sys/fs/cgroup
mounted bpf /sys/fs/bpf
# Messages of the kernel would stand in the middle of lines of the suites; panics are printed all the same.
echo 1 >/proc/sys/kernel/printk
ip link set lo up
echo "guest: kernel $($b uname -r)"

loaded() {
    for module in "$@"; do
        $b insmod "$module" || echo "guest: cannot load $module"
    done
}

# The agent itself, with nothing to do: what it says of the kernel, to a person and to the metrics.
features() {
    /mesh/mesh-agent check
    echo "guest: check $?"
    $b mkdir -p /tmp/objects /sys/fs/cgroup/pods
    /mesh/mesh-agent run --node guest --source dir:/tmp/objects --cgroup /sys/fs/cgroup/pods --ca local \
        --state-dir /tmp/state --metrics 127.0.0.1:9090 &
    agent=$!
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        $b wget -q -O /tmp/metrics http://127.0.0.1:9090/metrics && break
        $b sleep 1
    done
    $b sed -n 's/^mesh_kernel_feature/guest: feature/p' /tmp/metrics
    $b rm -f /tmp/metrics
    kill "$agent"
    wait "$agent"
    echo "guest: agent $?"
    /mesh/mesh-agent uninstall --instance mesh-agent --cgroup /sys/fs/cgroup/pods
    echo "guest: uninstall $?"
}

features
loaded /mesh/modules/*.ko
features
. /mesh/run
echo "guest: end"
$b poweroff -f
