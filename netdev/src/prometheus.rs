//! Prometheus' text format (version 0.0.4), and the counters in it.

use std::fmt::Write;

use crate::counters::{Content, Counters, Direction, ForwardCounters, Traffic};

/// A page of metrics, written one at a time.
pub struct Page {
    prefix: &'static str,
    text: String,
}

impl Page {
    /// An empty page, all of whose names begin with `prefix`.
    pub fn new(prefix: &'static str) -> Self {
        let text = String::new();
        Self { prefix, text }
    }

    /// A metric's head; its samples follow.
    pub fn metric(&mut self, name: &str, kind: &str, help: &str) {
        let prefix = self.prefix;
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "# HELP {prefix}{name} {help}");
        let _ = writeln!(self.text, "# TYPE {prefix}{name} {kind}");
    }

    /// A sample of the last metric, with labels and their values.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        self.text.push_str(self.prefix);
        self.text.push_str(name);
        for (index, (label, value)) in labels.iter().enumerate() {
            self.text.push(if index == 0 { '{' } else { ',' });
            let _ = write!(self.text, "{label}=\"{}\"", escape(value));
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.text, "{end} {value}");
    }

    /// All of it.
    pub fn into_text(self) -> String {
        self.text
    }
}

/// A label's value between its quotes.
fn escape(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

impl Counters {
    /// All counters, for Prometheus to read. Directions are the guest's: `in` is to it, `out`
    /// from it.
    pub fn prometheus(&self) -> String {
        let mut page = Page::new("peapod_net_");
        let packets: fn(&Traffic) -> u64 = |traffic| traffic.packets.get();
        for (name, help, value) in [
            (
                "packets_total",
                "Frames between the guest and the network; one that a card cuts counts once.",
                packets,
            ),
            (
                "bytes_total",
                "Bytes of those frames, Ethernet's header included.",
                |traffic| traffic.bytes.get(),
            ),
        ] {
            page.metric(name, "counter", help);
            for direction in Direction::ALL {
                for content in Content::ALL {
                    let labels = [
                        ("protocol", content.name()),
                        ("direction", direction.name()),
                    ];
                    page.sample(name, &labels, value(self.traffic(direction, content)));
                }
            }
        }
        let all = self.all();
        for (prefix, name, help) in [
            (
                "dropped_",
                "dropped_total",
                "Packets that were dropped, by reason.",
            ),
            (
                "refused_",
                "refused_total",
                "Flows that were refused, by reason.",
            ),
            (
                "failed_",
                "failed_total",
                "Flows of the guest that the pod could not open, by reason.",
            ),
        ] {
            page.metric(name, "counter", help);
            for (counter, value) in &all {
                if let Some(reason) = counter.strip_prefix(prefix) {
                    page.sample(name, &[("reason", reason)], *value);
                }
            }
        }
        page.metric("flows_opened_total", "counter", "Flows that were opened.");
        for (transport, direction, counter) in [
            ("tcp", Direction::Out, &self.tcp_out),
            ("tcp", Direction::In, &self.tcp_in),
            ("udp", Direction::Out, &self.udp_flows),
            ("icmp", Direction::Out, &self.echo_flows),
        ] {
            let labels = [("transport", transport), ("direction", direction.name())];
            page.sample("flows_opened_total", &labels, counter.get());
        }
        page.metric("flows", "gauge", "Flows that there are now.");
        page.sample("flows", &[], self.flows.get());
        page.metric(
            "retransmits_total",
            "counter",
            "Segments that were sent to the guest again.",
        );
        page.sample("retransmits_total", &[], self.retransmits.get());
        self.forwards_page(&mut page);
        page.into_text()
    }

    fn forwards_page(&self, page: &mut Page) {
        /// A sample's direction, if it has one, and its value.
        type Sample = (Option<Direction>, fn(&ForwardCounters) -> u64);
        let metrics: [(&str, &str, &[Sample]); 3] = [
            (
                "forward_connections_total",
                "Connections of a forward that the guest was asked to take; of UDP, clients.",
                &[(None, |counters| counters.connections.get())],
            ),
            (
                "forward_refused_total",
                "Connections of a forward that were sent away before the guest was asked.",
                &[(None, |counters| counters.refused.get())],
            ),
            (
                "forward_bytes_total",
                "Bytes of payload that came and went by a forward.",
                &[
                    (Some(Direction::In), |counters| counters.to_guest.get()),
                    (Some(Direction::Out), |counters| counters.from_guest.get()),
                ],
            ),
        ];
        let forwards = self.forwards();
        for (name, help, samples) in metrics {
            page.metric(name, "counter", help);
            for ((transport, bind, port), counters) in forwards.iter() {
                let (bind, port) = (bind.to_string(), port.to_string());
                for (direction, value) in samples {
                    let mut labels = vec![
                        ("transport", *transport),
                        ("bind", &bind),
                        ("guest_port", &port),
                    ];
                    labels.extend(direction.map(|direction| ("direction", direction.name())));
                    page.sample(name, &labels, value(counters));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::config::{Forward, Transport};

    #[test]
    fn a_page_is_what_prometheus_reads() {
        let counters = Counters::default();
        counters.dropped_spoofed.add();
        counters.refused_access.add_many(2);
        counters.tcp_in.add();
        let forward = counters.forward(&Forward {
            transport: Transport::Tcp,
            bind: "[::1]:8080".parse().unwrap(),
            guest_port: 80,
        });
        forward.to_guest.add_many(7);
        let traffic = counters.traffic(Direction::Out, Content::Tcp);
        traffic.packets.add_many(3);
        let page = counters.prometheus();
        for line in [
            "# TYPE peapod_net_dropped_total counter",
            "peapod_net_dropped_total{reason=\"spoofed\"} 1",
            "peapod_net_refused_total{reason=\"access\"} 2",
            "peapod_net_packets_total{protocol=\"tcp\",direction=\"out\"} 3",
            "peapod_net_flows_opened_total{transport=\"tcp\",direction=\"in\"} 1",
            "peapod_net_flows 0",
            "peapod_net_forward_bytes_total\
             {transport=\"tcp\",bind=\"[::1]:8080\",guest_port=\"80\",direction=\"in\"} 7",
        ] {
            assert!(page.lines().any(|other| other == line), "{line} in {page}");
        }
    }

    #[test]
    fn every_sample_stands_below_its_own_head_and_none_comes_twice() {
        let page = Counters::default().prometheus();
        let (mut kinds, mut samples) = (HashMap::new(), HashMap::new());
        let mut help = String::new();
        for line in page.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                help = rest.split(' ').next().unwrap().to_owned();
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert_eq!(name, help);
                assert_eq!(kinds.insert(name, kind), None, "{name}");
                assert_eq!(name.ends_with("_total"), kind == "counter", "{name}");
            } else {
                let (series, value) = line.rsplit_once(' ').unwrap();
                value.parse::<u64>().unwrap();
                assert_eq!(series.split('{').next().unwrap(), help);
                assert_eq!(samples.insert(series, value), None, "{series}");
            }
        }
        assert!(page.ends_with('\n') && samples.len() > 30);
    }

    #[test]
    fn a_label_cannot_end_its_line() {
        let mut page = Page::new("peapod_net_");
        page.sample("x", &[("a", "q\"b\\c\nd")], 1);
        assert_eq!(page.into_text(), "peapod_net_x{a=\"q\\\"b\\\\c\\nd\"} 1\n");
    }

    #[test]
    fn a_forward_that_comes_again_goes_on_where_it_was() {
        let counters = Counters::default();
        let forward = Forward {
            transport: Transport::Udp,
            bind: "127.0.0.1:53".parse().unwrap(),
            guest_port: 53,
        };
        counters.forward(&forward).connections.add();
        assert_eq!(counters.forward(&forward).connections.get(), 1);
    }
}
