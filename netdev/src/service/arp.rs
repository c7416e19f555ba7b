//! ARP (RFC 826).

use crate::config::{Config, GATEWAY_MAC};
use crate::wire::Arp;

const REQUEST: u16 = 1;
const REPLY: u16 = 2;

/// The gateway's question for the guest; `None` where the guest has no IPv4.
pub fn question(config: &Config) -> Option<Arp> {
    let v4 = config.v4?;
    Some(Arp {
        operation: 1,
        sender: (GATEWAY_MAC, v4.gateway),
        target: ([0xff; 6], v4.guest),
    })
}

/// The answer to an ARP question: the gateway speaks for itself, wherever its address is, and for
/// every address of the guest's network but the guest's own.
pub fn answer(config: &Config, question: &Arp) -> Option<Arp> {
    let network = config.v4.as_ref()?;
    let asked = question.target.1;
    let ours = config.is_ours(asked.into());
    let known = ours || (network.contains(asked) && asked != network.guest);
    (question.operation == REQUEST && known).then_some(Arp {
        operation: REPLY,
        sender: (GATEWAY_MAC, asked),
        target: question.sender,
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::super::tests::config;
    use super::*;

    fn asks(address: [u8; 4]) -> Arp {
        Arp {
            operation: REQUEST,
            sender: ([2; 6], Ipv4Addr::new(10, 0, 2, 2)),
            target: ([0; 6], address.into()),
        }
    }

    #[test]
    fn the_gateway_answers_for_all_but_the_guest() {
        let mut config = config("");
        for address in [[10, 0, 2, 1], [10, 0, 2, 77]] {
            let reply = answer(&config, &asks(address)).unwrap();
            assert_eq!(reply.operation, REPLY);
            assert_eq!(reply.sender, (GATEWAY_MAC, address.into()));
            assert_eq!(reply.target, asks(address).sender);
            assert_eq!(answer(&config, &reply), None, "an answer is no question");
        }
        for address in [[10, 0, 2, 2], [10, 0, 3, 1]] {
            assert_eq!(answer(&config, &asks(address)), None);
        }
        config.v4 = None;
        assert_eq!(answer(&config, &asks([10, 0, 2, 1])), None);
    }

    #[test]
    fn a_gateway_outside_the_guest_s_network_answers() {
        let mut config = config("");
        let network = config.v4.as_mut().unwrap();
        (network.prefix, network.gateway) = (32, Ipv4Addr::new(169, 254, 1, 1));
        assert!(answer(&config, &asks([169, 254, 1, 1])).is_some());
        assert_eq!(answer(&config, &asks([169, 254, 1, 2])), None);
    }
}
