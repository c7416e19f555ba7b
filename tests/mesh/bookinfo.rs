//! Bookinfo, whose details are in the guest: each service in its pod with its sidecar, by TLS
//! between them, behind a gateway.

use peapod_tests::mesh::application::{Bookinfo, DETAILS, GATEWAY};
use peapod_tests::mesh::{Collector, Pod};
use peapod_tests::until;
use serde_json::Value;

pub fn what_the_guest_says_comes_out_at_the_gateway_and_in_one_trace() {
    let pages = format!("{}", std::process::id() * 7919 + 100_003);
    let site = Bookinfo::start(&DETAILS.replace("pages: 200", &format!("pages: {pages}")));

    let ask = |path: &str| {
        site.client
            .run(&format!("curl -s --max-time 20 http://{GATEWAY}{path}"))
    };
    let page = until("the page has no details", || {
        let page = ask("/productpage");
        (page.contains(&pages) && page.contains("Book Reviews")).then_some(page)
    });
    assert!(page.contains("William Shakespeare"), "{page}");
    let book: Value = serde_json::from_str(&ask("/api/v1/products/0")).unwrap();
    assert_eq!(book["pages"].to_string(), pages);

    // Each version of the reviews has its turn.
    let mut seen = [false; 3];
    until("some version of the reviews has no turn", || {
        let said: Value = serde_json::from_str(&ask("/api/v1/products/0/reviews")).ok()?;
        let color = said["reviews"][0]["rating"]["color"].as_str();
        seen[["black", "red"]
            .iter()
            .position(|c| Some(*c) == color)
            .map_or(0, |i| i + 1)] = true;
        (seen == [true; 3]).then_some(())
    });

    // The gateway serves nothing else.
    for (path, status) in [
        ("/static/tailwind/tailwind.css", "200"),
        ("/logout", "302"),
        ("/", "404"),
        ("/details/0", "404"),
        ("/health", "404"),
    ] {
        // Istio's own productpage goes back to where somebody has logged out.
        let script = "-s -o /dev/null -w '%{http_code}' --max-time 20 -e http://x/productpage";
        let got = site
            .client
            .run(&format!("curl {script} http://{GATEWAY}{path}"));
        assert_eq!(got, status, "{path}");
    }

    // Who logs in comes back to the page.
    let said = site.client.run(&format!(
        "curl -s -o /dev/null -w '%{{http_code}} %{{redirect_url}}' --max-time 20 \
         -d username=tester -e http://{GATEWAY}/productpage http://{GATEWAY}/login"
    ));
    assert_eq!(said, format!("302 http://{GATEWAY}/productpage"));

    // Who has no certificate gets nowhere.
    let plain = format!(
        "curl -s --max-time 20 http://{}:9080/details/0",
        site.details.address
    );
    assert_eq!(site.client.attempt(&plain), (String::new(), false));

    // Envoys' counters tell of the guest's calls.
    let (details, productpage) = (&site.details_proxy, &site.productpage_proxy);
    let inbound = details.counter("cluster.inbound|9080||.upstream_rq_200");
    let called = format!("cluster.{}.upstream_rq_200", site.services[0].outbound());
    assert!(inbound >= 2);
    assert_eq!(inbound, productpage.counter(&called));
    // So do the guest and its network, as `make demo` shows.
    assert_eq!(inbound, site.guest.answered());
    for (name, label) in [
        ("connections_total", ""),
        ("bytes_total", "direction=\"in\""),
        ("bytes_total", "direction=\"out\""),
    ] {
        assert!(
            site.guest.forwarded(name, 9080, label) > 0,
            "{name} {label}"
        );
    }
    let served = format!("cluster.{}.upstream_rq_200", site.services[3].outbound());
    assert!(site.gateway.counter(&served) >= 3);

    one_trace(&site.collector, &site.client);
}

/// One request through all of them is one trace, in which details is asked by productpage.
fn one_trace(collector: &Collector, client: &Pod) {
    let id = "463ac35c9f6413ad48485a3953bb6124";
    client.run(&format!(
        "curl -sSf --max-time 20 -o /dev/null -H 'x-b3-traceid: {id}' \
         -H 'x-b3-spanid: 0020000000000001' -H 'x-b3-sampled: 1' http://{GATEWAY}/api/v1/products/0"
    ));
    let span = |service: &str, kind: &str| {
        let name = format!("{service}.default");
        until(&format!("no span of {service}, {kind}"), || {
            let trace = collector.trace(id);
            trace
                .into_iter()
                .find(|span| span["localEndpoint"]["serviceName"] == *name && span["kind"] == *kind)
        })
    };
    let details = span("details", "SERVER");
    let call = span("productpage", "CLIENT");
    let productpage = span("productpage", "SERVER");
    assert_eq!(details["parentId"], call["id"], "{details} {call}");
    assert_eq!(call["parentId"], productpage["id"], "{call} {productpage}");
}
