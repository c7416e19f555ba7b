# What a newcomer types; each is a script in ci/.
.PHONY: help run demo test test-all soak bench bench-net bench-net-vm bench-mesh compare images image deb lint

help:           ## what there is
	@awk -F ': +## ' 'NF == 2 { printf "make %-12s %s\n", $$1, $$2 }' Makefile

run:            ## boot Bookinfo's details service in a VM, ask it, stop it; installs what that needs
	@ci/run

demo:           ## Bookinfo in a mesh with its details in a VM, to look at in a browser; as root
	@ci/demo

test:           ## every test but the slow ones, guests included
	@ci/test

test-all:       ## the slow ones too
	@ci/test all

soak:           ## what has to hold for long, for long
	@ci/test soak

bench:          ## Peapod beside QEMU: boot and memory; a table, and JSON in target/bench
	@ci/bench

bench-net:      ## the user-mode network beside pasta, slirp4netns and a veth pair; as root
	@ci/bench net

bench-net-vm:   ## a VM's network beside QEMU's: slirp, passt, tap + vhost-net
	@ci/bench net-vm

bench-mesh:     ## requests through Envoys into a VM, beside QEMU's networks
	@ci/bench mesh

compare:        ## what the benchmarks have found, as a page: target/bench/report.html
	@ci/bench compare

images:         ## kernel, initramfs and guest roots, in target/images
	@ci/setup images
	@ci/build

image:          ## the compute container's image, in target/images/compute.tar
	@ci/setup image
	@ci/image

deb:            ## the agent as a Debian package, in target
	@ci/setup
	@ci/deb

lint:           ## formatting, clippy with warnings denied, licences, doubled versions, shellcheck
	@ci/lint
