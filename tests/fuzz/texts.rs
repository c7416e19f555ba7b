//! What a user or the pod has written: published ports, and where names are looked up.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netdev::publish::Publish;
use netdev::resolver::Resolver;

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(publish) = text.parse::<Publish>() {
        assert_eq!(publish.to_string().parse(), Ok(publish.clone()));
        let families = if publish.address.is_some() { 1 } else { 2 };
        let forwards = publish.forwards(true, true);
        assert_eq!(forwards.len(), publish.host.len() * families);
    }
    let _ = Resolver::parse(&text);
});
