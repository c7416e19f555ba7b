"""The four stages of cloud-init one after the other, as its units run them, with one interpreter."""
import os
import sys
import time

from cloudinit.cmd import main

for words in (["init", "--local"], ["init"], ["modules", "--mode=config"], ["modules", "--mode=final"]):
    child = os.fork()
    if child == 0:
        sys.argv = ["/usr/bin/cloud-init", *words]
        sys.exit(main.main(sys.argv))
    os.waitpid(child, 0)

# power_state's own process waits for this one to end, and nothing outlives a boot here.
own = {1, os.getpid(), *(int(pid) for pid in os.environ.get("OWN", "").split())}
for _ in range(20):
    if not {int(name) for name in os.listdir("/proc") if name.isdigit()} - own:
        break
    time.sleep(0.1)
