//! What a netlink socket gives: messages of links, addresses and routes, one behind another; and a change of a
//! link, which reads as it was written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netdev::netlink::{Change, Link, Message, own_address};
use netlink_packet_core::{Emitable, NetlinkMessage, NetlinkPayload, Parseable};
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::route::RouteMessage;

fn change(link: &Link) {
    let change = Change {
        index: link.index,
        up: Some(link.is_up),
        mtu: link.mtu,
        name: (!link.name.is_empty()).then_some(&link.name),
    };
    let mut bytes = vec![0; change.buffer_len()];
    change.emit(&mut bytes);
    let read = Link::parse(&bytes).unwrap();
    let wanted = (link.index, link.is_up, link.mtu, &link.name);
    assert_eq!((read.index, read.is_up, read.mtu, &read.name), wanted);
}

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    while let Some(len) = rest.first_chunk() {
        if let Ok(message) = NetlinkMessage::<Message<Link>>::deserialize(rest)
            && let NetlinkPayload::InnerMessage(message) = message.payload
        {
            change(&message.body);
        }
        if let Ok(message) = NetlinkMessage::<Message<AddressMessage>>::deserialize(rest)
            && let NetlinkPayload::InnerMessage(message) = message.payload
        {
            let _ = own_address(&message.body);
        }
        let _ = NetlinkMessage::<Message<RouteMessage>>::deserialize(rest);
        let len = (u32::from_ne_bytes(*len) as usize).next_multiple_of(4);
        rest = rest.get(len.max(4)..).unwrap_or_default();
    }
});
