"""The files that make a node a service of systemd, as text. The reasons stand beside the lines, where an operator reads them."""

from __future__ import annotations

from pathlib import Path

USER = "edge"
STATE = Path("/var/lib/edge")
UNIT = Path("/etc/systemd/system/edge.service")
USERS = Path("/etc/sysusers.d/edge.conf")
ENVIRONMENT = Path("/etc/edge/edge.env")

USERS_TEXT = f"""\
# Written by `edge install --systemd`. The user of the node, and the groups that own GPU devices on Jetson boards and iGPUs.
u {USER} - "edge inference node" {STATE}
m {USER} video
m {USER} render
"""

ENVIRONMENT_TEXT = """\
# Settings of the node as the service sees them, one NAME=value a line; `edge settings` lists the names. Yours to edit: an
# installation never writes it again. Secrets belong into files that the settings name, not here.
#EDGE_SERVER__HOST=0.0.0.0
#EDGE_LOG__FORMAT=json
"""


def unit_text(executable: Path) -> str:
    """The service's unit; `executable` is the `edge` that it runs."""
    return f"""\
# Written by `edge install --systemd`, which writes it anew: put changes into a drop-in (`systemctl edit edge`).
[Unit]
Description=edge inference node
# Not after network-online.target: the node serves with everything upstream unreachable. After the driver's own service, since
# DeviceAllow= below is resolved when the service starts.
After=network.target nvidia-persistenced.service
# No number of failed starts is the last one: nobody stands beside the box to start it again when the memory is there after all,
# or the port is free.
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={executable} serve
User={USER}
Group={USER}
Environment=EDGE_HOME={STATE}
EnvironmentFile=-{ENVIRONMENT}
StateDirectory={STATE.name}
StateDirectoryMode=0700
WorkingDirectory={STATE}
UMask=0077

# The node asks for more time by itself: while a model is loaded, and at its end for what its settings allow
# (server.drain_timeout_s, then writing cache.kept_mib to the disk). This much it has without asking.
TimeoutStartSec=120
TimeoutStopSec=90
WatchdogSec=30
# The node ends its engines itself; what is left after the time is killed with the rest.
KillMode=mixed
Restart=always
RestartSec=10
# Wrong settings do not get better by trying again.
RestartPreventExitStatus=2 78
# An engine that is killed for want of memory is started again, smaller; the node stays.
OOMPolicy=continue
LimitNOFILE=65536
# A dump of memory would hold what users sent.
LimitCORE=0

# GPUs: NVIDIA's devices, then those of Jetson boards. For others: `systemctl edit edge`, and DeviceAllow= or DevicePolicy=auto.
DevicePolicy=closed
DeviceAllow=char-nvidia* rw
DeviceAllow=char-nvgpu* rw
DeviceAllow=char-nvhost* rw
DeviceAllow=char-nvmap* rw
DeviceAllow=/dev/nvmap rw
DeviceAllow=char-drm rw

NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateUsers=yes
PrivateIPC=yes
ProtectProc=invisible
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectHostname=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
LockPersonality=yes
RemoveIPC=yes
KeyringMode=private
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
# Background engines step back behind the others with these; RestrictRealtime= keeps every process from going before them.
SystemCallFilter=sched_setscheduler setpriority
# Whether a time source has set the clock is asked with these; without a capability nobody can set it with them. ProtectClock=
# would forbid to ask, and a clock that nobody vouches for is not believed: commands of the fleet would be refused for ever.
SystemCallFilter=adjtimex clock_adjtime
# Left open on purpose: ProcSubset= (memory and pressure are read from /proc), MemoryDenyWriteExecute= (GPU drivers make code
# while they run), PrivateDevices= (it would take the GPUs away).

[Install]
WantedBy=multi-user.target
"""
