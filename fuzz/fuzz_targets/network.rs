//! Networks in CIDR form and `X-Forwarded-For`: never a panic, and what a stranger writes left of a trusted proxy's word
//! is never believed.
#![no_main]

use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use lockstep::domain::network::{Network, source};

fuzz_target!(|text: &str| {
    if let Ok(network) = text.parse::<Network>() {
        assert_eq!(network.to_string().parse(), Ok(network));
    }
    let trusted = ["10.0.0.0/8".parse::<Network>().expect("a good network")];
    let (proxy, sender, stranger) =
        ([10, 0, 0, 1].into(), IpAddr::from([192, 0, 2, 1]), IpAddr::from([198, 51, 100, 1]));
    let lines: Vec<&str> = text.lines().collect();
    source(proxy, lines.iter().copied(), &trusted);
    assert_eq!(source(stranger, lines.iter().copied(), &trusted), stranger);
    let appended = format!("{text}, {sender}");
    assert_eq!(source(proxy, std::iter::once(&*appended), &trusted), sender);
});
