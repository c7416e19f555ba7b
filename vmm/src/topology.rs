//! How a machine's vCPUs are told apart: by socket, core and thread.
//!
//! Source: Intel SDM volume 3, "Hierarchical mapping of shared resources": each has as many bits of
//! the APIC id as its largest number needs, so that the ids have gaps where a count is no power of
//! two.

/// The most vCPUs that a machine may have. However they are laid out, an APIC id then fits in a byte.
pub const MAX_VCPUS: u32 = 64;

/// How many of each; none is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// Sockets.
    pub sockets: u8,
    /// Cores of a socket.
    pub cores: u8,
    /// Threads of a core.
    pub threads: u8,
}

impl Topology {
    /// Of one vCPU.
    pub const ONE: Self = Self {
        sockets: 1,
        cores: 1,
        threads: 1,
    };

    /// All threads.
    pub fn vcpus(&self) -> u32 {
        u32::from(self.sockets) * u32::from(self.cores) * u32::from(self.threads)
    }

    /// The bits of an APIC id that are the thread's.
    pub fn thread_bits(&self) -> u32 {
        bits(self.threads)
    }

    /// The bits of an APIC id that are not the socket's.
    pub fn socket_shift(&self) -> u32 {
        bits(self.cores) + self.thread_bits()
    }

    /// Threads of a socket.
    pub fn in_socket(&self) -> u8 {
        self.cores.saturating_mul(self.threads)
    }

    /// The APIC ids of all vCPUs, the first one's first.
    pub fn apic_ids(self) -> impl Iterator<Item = u8> {
        let (sockets, cores, threads) = (0..self.sockets, 0..self.cores, 0..self.threads);
        sockets.flat_map(move |socket| {
            let threads = threads.clone();
            cores.clone().flat_map(move |core| {
                threads.clone().map(move |thread| {
                    socket << self.socket_shift() | core << self.thread_bits() | thread
                })
            })
        })
    }
}

/// The bits that tell `count` apart.
fn bits(count: u8) -> u32 {
    u32::from(count).next_power_of_two().trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_vcpu_of_every_machine_has_an_id_of_its_own_below_the_broadcast() {
        let mut machines = 0;
        let counts = || 1..=MAX_VCPUS as u8;
        for sockets in counts() {
            for (cores, threads) in counts().flat_map(|cores| counts().map(move |t| (cores, t))) {
                let topology = Topology {
                    sockets,
                    cores,
                    threads,
                };
                if topology.vcpus() > MAX_VCPUS {
                    continue;
                }
                let ids: Vec<u8> = topology.apic_ids().collect();
                assert_eq!(ids.len(), topology.vcpus() as usize);
                assert!(ids.is_sorted_by(|a, b| a < b) && ids[ids.len() - 1] < 0xff);
                machines += 1;
            }
        }
        assert!(machines > 500);
    }

    #[test]
    fn socket_core_and_thread_have_bits_of_their_own() {
        let topology = Topology {
            sockets: 2,
            cores: 3,
            threads: 2,
        };
        let ids: Vec<u8> = topology.apic_ids().collect();
        assert_eq!(ids, [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]);
    }
}
