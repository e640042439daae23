//! `/metrics`, `/healthz` and `/readyz` over plain HTTP/1, for agent and mesh server alike.
//!
//! Each connection carries one request and lives for at most [`CONNECTION_TIME`]; more than [`CONNECTIONS_MAX`] at once
//! wait in the listen queue. So nobody who can reach the port can use up a process's file descriptors.

mod readiness;

use std::convert::Infallible;
use std::fmt::Write as _;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::text;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use readiness::{Hold, Readiness};

/// Connections that are served at once.
pub const CONNECTIONS_MAX: usize = 64;

/// The longest life of a connection.
pub const CONNECTION_TIME: Duration = Duration::from_secs(5);

/// What [`serve`] gives the requests under way when it is to end.
pub const SHUTDOWN_TIME: Duration = Duration::from_millis(200);

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error(
        "cannot listen on {address} for /metrics, /healthz and /readyz: {error}; give a free address in --http"
    )]
    Listen { address: String, error: io::Error },
}

/// An empty registry whose metrics are named `isthmus_…`, holding `isthmus_build_info{component, version}`.
#[must_use]
pub fn registry(component: &'static str, version: &'static str) -> Registry {
    let mut registry = Registry::with_prefix("isthmus");
    let labels = vec![("component", component), ("version", version)];
    registry.register("build", "What is running", Info::new(labels));
    registry
}

/// Listens on `address` (`HOST:PORT`). Apart from [`serve`], so that a busy port is an error at start.
pub async fn listen(address: &str) -> Result<TcpListener, HttpError> {
    TcpListener::bind(address)
        .await
        .map_err(|error| HttpError::Listen {
            address: address.to_owned(),
            error,
        })
}

/// Answers until `shutdown`, then lets the requests under way end.
///
/// `/healthz` is 200 as long as the process answers. `/readyz` is 200 with no [`Hold`] open, else 503 with one cause a
/// line. `/metrics` is `registry` in OpenMetrics text.
pub async fn serve(
    listener: TcpListener,
    registry: Arc<Registry>,
    readiness: Readiness,
    shutdown: CancellationToken,
) {
    let free = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let connections = TaskTracker::new();
    let accept = async {
        loop {
            // The semaphore is never closed: an error here cannot be.
            let Ok(permit) = Arc::clone(&free).acquire_owned().await else {
                return;
            };
            let Some(stream) = accept(&listener).await else {
                continue;
            };
            let (registry, readiness, shutdown) =
                (Arc::clone(&registry), readiness.clone(), shutdown.clone());
            connections.spawn(async move {
                let _permit = permit;
                tokio::select! {
                    // A client that leaves early has nobody to report to.
                    _ = answer_one(stream, registry, readiness) => {}
                    () = tokio::time::sleep(CONNECTION_TIME) => {}
                    () = async { shutdown.cancelled().await; tokio::time::sleep(SHUTDOWN_TIME).await } => {}
                }
            });
        }
    };
    shutdown.run_until_cancelled(accept).await;
    connections.close();
    connections.wait().await;
}

/// The next connection, or none if this one failed. Out of descriptors, it gives the process a moment to close some.
async fn accept(listener: &TcpListener) -> Option<TcpStream> {
    match listener.accept().await {
        Ok((stream, _)) => Some(stream),
        Err(error) => {
            tracing::debug!(%error, "http: accept failed");
            tokio::time::sleep(Duration::from_millis(10)).await;
            None
        }
    }
}

async fn answer_one(
    stream: TcpStream,
    registry: Arc<Registry>,
    readiness: Readiness,
) -> hyper::Result<()> {
    let answer = service_fn(move |request: Request<Incoming>| {
        let response = answer(
            request.method(),
            request.uri().path(),
            &registry,
            &readiness,
        );
        async move { Ok::<_, Infallible>(response) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), answer)
        .await
}

fn answer(
    method: &Method,
    path: &str,
    registry: &Registry,
    readiness: &Readiness,
) -> Response<Full<Bytes>> {
    let reply = match path {
        "/metrics" => metrics(registry),
        "/healthz" => reply(StatusCode::OK, PLAIN, "ok\n".to_owned()),
        "/readyz" => ready(&readiness.causes()),
        _ => {
            return reply(
                StatusCode::NOT_FOUND,
                PLAIN,
                "here are /metrics, /healthz and /readyz\n".to_owned(),
            );
        }
    };
    if method == Method::GET || method == Method::HEAD {
        return reply;
    }
    let mut refusal = self::reply(
        StatusCode::METHOD_NOT_ALLOWED,
        PLAIN,
        "GET or HEAD only\n".to_owned(),
    );
    refusal
        .headers_mut()
        .insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
    refusal
}

fn metrics(registry: &Registry) -> Response<Full<Bytes>> {
    let mut body = String::new();
    match text::encode(&mut body, registry) {
        Ok(()) => reply(StatusCode::OK, OPENMETRICS, body),
        Err(_) => reply(
            StatusCode::INTERNAL_SERVER_ERROR,
            PLAIN,
            "a metric could not be written\n".to_owned(),
        ),
    }
}

fn ready(causes: &[String]) -> Response<Full<Bytes>> {
    if causes.is_empty() {
        return reply(StatusCode::OK, PLAIN, "ready\n".to_owned());
    }
    let lines = causes.iter().fold(String::new(), |mut lines, cause| {
        let _ = writeln!(lines, "not ready: {cause}");
        lines
    });
    reply(StatusCode::SERVICE_UNAVAILABLE, PLAIN, lines)
}

fn reply(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests;
