//! The pod that `peapod pod` prints, as Istio's injector leaves it, in a kubelet's hands.

use std::net::TcpListener;
use std::time::Duration;

use peapod_tests::kubelet::{self, Kubelet};
use peapod_tests::mesh::{Server, agent, inject};
use peapod_tests::{Manifest, PATIENCE};
use serde_json::Value;

use super::sidecar::RANGES;
use super::site::{DETAILS, Site};

/// What a boot takes beside its proxy, in the lab.
const BOOT: Duration = PATIENCE.saturating_mul(2);

/// The details service's VMI.
fn details() -> Manifest {
    Manifest::new("details", "cd /opt/details\nruby details.rb 9080 &\n").port(9080)
}

/// The objects that are printed of it, with a container for its disk and this among its metadata.
fn printed(manifest: &Manifest, metadata: &str) -> Vec<Value> {
    let directory = tempfile::tempdir().unwrap();
    let path = manifest.write(directory.path());
    let text = std::fs::read_to_string(&path).unwrap();
    let text = text.replacen("metadata:\n", &format!("metadata:\n{metadata}"), 1);
    std::fs::write(&path, text).unwrap();
    let mut list = kubelet::printed(&path, &["--container-disks", "containers"]);
    serde_json::from_value(list["items"].take()).unwrap()
}

fn pod(objects: &mut [Value]) -> &mut Value {
    let mut all = objects.iter_mut();
    all.find(|object| object["kind"] == "Pod").unwrap()
}

pub fn what_is_printed_is_ready_three_of_three_with_the_injected_sidecar() {
    let site = Site::new(&RANGES);
    let mut objects = printed(&details(), "");
    let probers = inject(pod(&mut objects)).unwrap();
    let _agent = site.details.inside(|| {
        let listener = TcpListener::bind("0.0.0.0:15020").unwrap();
        Server::start(listener, agent(site.details.address, probers))
    });
    let network = (site.details.space(), site.details.address.into());
    let mut kubelet = Kubelet::run_in(network, "details", &objects);
    // The guest boots, and the proxy is not there yet. Kubelet asks from the node.
    let mut until = |what: &str, containers: (usize, usize)| {
        let node = &site.node;
        node.inside(|| kubelet.until(what, BOOT, |pod| pod.containers == containers));
    };
    until("its disk is not there", (1, 3));
    let _envoy = site.envoy(&site.sidecar(&RANGES));
    until("it is not ready", (3, 3));
    assert_eq!(kubelet.status().restarts, 0, "{:?}", kubelet.status());
    let book = site
        .ratings
        .curl(&format!("http://{DETAILS}:9080/details/0"));
    assert!(book.contains("ISBN-10"), "{book}");

    // A port that is to be open is the agent's to try as well.
    let alive = details().liveness("{tcpSocket: {port: 9080}}");
    let probers = inject(pod(&mut printed(&alive, ""))).unwrap();
    assert_eq!(probers["/app-health/compute/livez"], (9080, None));

    // By default it is injected; an annotation that a VMI has opts out.
    let metadata = "  annotations: {sidecar.istio.io/inject: 'false'}\n";
    let mut objects = printed(&details(), metadata);
    let pod = pod(&mut objects);
    assert!(inject(pod).is_none());
    assert_eq!(pod["spec"]["containers"].as_array().unwrap().len(), 1);
}
