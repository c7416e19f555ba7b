//! Bookinfo's services that are not in the guest: stand-ins with the same paths and JSON, or
//! Istio's own where `PEAPOD_BOOKINFO` is the samples/bookinfo of a checkout.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use axum::extract::Path;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

use super::{Pod, Server, User};
use crate::space::Process;
use crate::{PATIENCE, until};

/// The first argument of a program that is to be one of them; the second says which.
pub const SERVICE: &str = "--bookinfo";
/// The port of each.
const PORT: u16 = 9080;
/// What runs of a checkout, and by what; reviews would have to be built first.
const REAL: [(&str, &str, &str); 2] = [
    ("productpage", "python3", "productpage.py"),
    ("ratings", "node", "ratings.js"),
];
/// What a service passes on of who has asked it.
const PASSED_ON: [&str; 10] = [
    "x-request-id",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "traceparent",
    "tracestate",
    "end-user",
    "cookie",
];

/// Starts the one that a pod is called after, and waits until it serves.
pub fn start(pod: &Pod) -> Process {
    let real = REAL.iter().find(|(name, ..)| *name == pod.name);
    if let (Some(checkout), Some(real)) = (std::env::var_os("PEAPOD_BOOKINFO"), real) {
        return start_real(pod, checkout.into(), *real);
    }
    let program = std::env::current_exe().unwrap();
    let mut command = pod.command(User::Root, program.to_str().unwrap());
    let process = Process::start(command.args([SERVICE, &pod.name])).unwrap();
    assert_eq!(process.line(PATIENCE).unwrap(), "ready");
    process
}

fn start_real(pod: &Pod, checkout: PathBuf, (name, by, file): (&str, &str, &str)) -> Process {
    let folder = checkout.join("src").join(name);
    let what = format!("PEAPOD_BOOKINFO: {by} {}", folder.join(file).display());
    assert!(folder.join(file).is_file(), "{what}: there is none");
    let log = format!("/run/{}.log", pod.space.name);
    let mut command = pod.command(User::Root, by);
    command.args([file, &PORT.to_string()]).current_dir(&folder);
    command.stderr(File::create(&log).unwrap());
    let mut process = Process::start(&mut command).unwrap_or_else(|e| panic!("{what}: {e}"));
    until(&format!("{what}: it does not serve"), || {
        // Its interpreter or a package is not there.
        if process.ended() {
            panic!("{what}: {}", fs::read_to_string(&log).unwrap());
        }
        let open = || TcpStream::connect((Ipv4Addr::LOCALHOST, PORT)).ok();
        pod.inside(open).map(drop)
    });
    process
}

/// Serves as `productpage`, `ratings`, or `v1`, `v2` or `v3` of reviews, for as long as it is let.
pub fn serve(role: &str) -> ! {
    let routes = match role {
        "productpage" => productpage(),
        "ratings" => ratings(),
        "v1" => reviews(None),
        "v2" => reviews(Some("black")),
        "v3" => reviews(Some("red")),
        _ => panic!("{role}: no service of Bookinfo"),
    };
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap();
    let _server = Server::start(listener, routes);
    println!("ready");
    loop {
        std::thread::park();
    }
}

/// What another service answers to who asks in these headers' name.
async fn ask(url: String, headers: &HeaderMap) -> Result<Value, StatusCode> {
    let passed: Vec<_> = PASSED_ON
        .iter()
        .filter_map(|name| Some((*name, headers.get(*name)?.clone())))
        .collect();
    let call = move || {
        let mut request = ureq::get(&url)
            .config()
            .timeout_global(Some(Duration::from_secs(10)))
            .build();
        for (name, value) in passed {
            request = request.header(name, value);
        }
        let text = request.call()?.body_mut().read_to_string()?;
        serde_json::from_str(&text).map_err(|error| ureq::Error::Io(error.into()))
    };
    match tokio::task::spawn_blocking(call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(ureq::Error::StatusCode(code))) => {
            Err(StatusCode::from_u16(code).unwrap_or(StatusCode::BAD_GATEWAY))
        }
        _ => Err(StatusCode::SERVICE_UNAVAILABLE),
    }
}

fn productpage() -> Router {
    let of = |service: &str, id: &str| format!("http://{service}:{PORT}/{service}/{id}");
    let details = async move |headers: HeaderMap, Path(id): Path<String>| {
        ask(of("details", &id), &headers).await.map(Json)
    };
    let reviews = async move |headers: HeaderMap, Path(id): Path<String>| {
        ask(of("reviews", &id), &headers).await.map(Json)
    };
    let ratings = async move |headers: HeaderMap, Path(id): Path<String>| {
        ask(of("ratings", &id), &headers).await.map(Json)
    };
    let front = async || ([(header::LOCATION, "/productpage")], StatusCode::FOUND);
    Router::new()
        .route("/productpage", get(page))
        .route("/api/v1/products", get(async || Json(json!([product()]))))
        .route("/api/v1/products/{id}", get(details))
        .route("/api/v1/products/{id}/reviews", get(reviews))
        .route("/api/v1/products/{id}/ratings", get(ratings))
        .route("/health", get(async || "Product page is healthy"))
        .route("/login", post(front))
        .route("/logout", get(front))
        .route("/static/{*file}", get(async || "body { margin: 0 }"))
}

fn product() -> Value {
    json!({"id": 0, "title": "The Comedy of Errors", "descriptionHtml": "A comedy."})
}

async fn page(headers: HeaderMap) -> Response {
    let details = ask(format!("http://details:{PORT}/details/0"), &headers).await;
    let reviews = ask(format!("http://reviews:{PORT}/reviews/0"), &headers).await;
    let shown = |what: &str, answer: Result<Value, StatusCode>| match answer {
        Ok(answer) => format!("<h4>Book {what}</h4><pre>{answer:#}</pre>"),
        Err(status) => format!("<h4>Error fetching product {what}!</h4><p>{status}</p>"),
    };
    let text = shown("Details", details) + &shown("Reviews", reviews);
    Html(format!("<title>Simple Bookstore App</title>{text}")).into_response()
}

/// A version of reviews: the first has no stars, each of the others a colour of them.
fn reviews(color: Option<&'static str>) -> Router {
    let answer = async move |headers: HeaderMap, Path(id): Path<String>| {
        let stars = match color {
            Some(_) => ask(format!("http://ratings:{PORT}/ratings/{id}"), &headers).await,
            None => Ok(Value::Null),
        };
        let review = |reviewer: &str, text: &str| {
            let mut review = json!({"reviewer": reviewer, "text": text});
            if let Some(color) = color {
                review["rating"] = match &stars {
                    Ok(stars) => json!({"stars": stars["ratings"][reviewer], "color": color}),
                    Err(_) => json!({"error": "Ratings service is currently unavailable"}),
                };
            }
            review
        };
        let all = [
            review("Reviewer1", "An extremely entertaining play."),
            review("Reviewer2", "Absolutely fun and entertaining."),
        ];
        Json(json!({"id": id, "podname": "reviews", "clustername": "null", "reviews": all}))
    };
    Router::new()
        .route(
            "/health",
            get(async || Json(json!({"status": "Reviews is healthy"}))),
        )
        .route("/reviews/{id}", get(answer))
}

fn ratings() -> Router {
    let answer = async |Path(id): Path<u64>| {
        Json(json!({"id": id, "ratings": {"Reviewer1": 5, "Reviewer2": 4}}))
    };
    Router::new()
        .route(
            "/health",
            get(async || Json(json!({"status": "Ratings is healthy"}))),
        )
        .route("/ratings/{id}", get(answer))
}
