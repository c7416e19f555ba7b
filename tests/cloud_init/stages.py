"""The four stages of cloud-init one after the other, as its units run them, with one interpreter."""
import os
import sys

from cloudinit.cmd import main

for words in (["init", "--local"], ["init"], ["modules", "--mode=config"], ["modules", "--mode=final"]):
    child = os.fork()
    if child == 0:
        sys.argv = ["/usr/bin/cloud-init", *words]
        sys.exit(main.main(sys.argv))
    os.waitpid(child, 0)
