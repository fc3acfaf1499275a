//! A very small server for the demo page: three files, and the buttons on it.
//!
//! The page talks to the service directly, as any client would; from here it only learns where the
//! service is, and asks for it to be killed.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;

use crate::Outcome;
use crate::service::Service;

/// Longest accepted request head, in bytes.
const HEAD_BYTES_MAX: usize = 16 * 1024;

const INDEX: &str = include_str!("../../web/demo/index.html");
const SCRIPT: &str = include_str!("../../web/demo/demo.js");
const STYLE: &str = include_str!("../../web/demo/demo.css");

/// What the page may know and do.
pub struct Control {
    pub service_url: String,
    pub service: Mutex<Service>,
}

/// Binds the port and gives back a future that serves until it is dropped.
pub async fn serve(
    port: u16,
    control: Arc<Control>,
) -> Outcome<(SocketAddr, impl Future<Output = Outcome<bool>> + Send + 'static)> {
    let listener = TcpListener::bind(("127.0.0.1", port)).await.map_err(|error| {
        format!("cannot serve the page on port {port}: {error}; choose another with --port")
    })?;
    let address = listener.local_addr()?;
    let accept = async move {
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::spawn(answer(stream, Arc::clone(&control)));
        }
    };
    Ok((address, accept))
}

async fn answer(stream: TcpStream, control: Arc<Control>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut request = String::new();
    stream.read_line(&mut request).await?;
    let mut head_bytes = request.len();
    let mut line = String::new();
    // A page of another origin cannot send this header without being asked first, and is then refused.
    let mut is_our_page = false;
    loop {
        line.clear();
        head_bytes += stream.read_line(&mut line).await?;
        if line.trim().is_empty() {
            break;
        }
        is_our_page |= line.to_ascii_lowercase().starts_with("x-shapefold-demo:");
        if head_bytes > HEAD_BYTES_MAX {
            return Ok(());
        }
    }
    let mut words = request.split_whitespace();
    let method = words.next().unwrap_or_default();
    let path = words.next().unwrap_or_default().split('?').next().unwrap_or_default();
    let (status, content_type, body) = match (method, path) {
        ("GET", "/") => ("200 OK", "text/html; charset=utf-8", INDEX.to_owned()),
        ("GET", "/demo.js") => ("200 OK", "text/javascript; charset=utf-8", SCRIPT.to_owned()),
        ("GET", "/demo.css") => ("200 OK", "text/css; charset=utf-8", STYLE.to_owned()),
        ("GET", "/service.json") => {
            let pid = control.service.try_lock().ok().and_then(|service| service.pid());
            let body = serde_json::json!({ "url": control.service_url, "pid": pid });
            ("200 OK", "application/json", body.to_string())
        }
        ("POST", "/kill") if is_our_page => {
            control.service.lock().await.signal(Signal::KILL);
            ("202 Accepted", "application/json", "{}".to_owned())
        }
        _ => ("404 Not Found", "text/plain; charset=utf-8", "Not found".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\ncache-control: no-store\r\n\
         x-content-type-options: nosniff\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.get_mut().write_all(head.as_bytes()).await?;
    stream.get_mut().write_all(body.as_bytes()).await?;
    stream.get_mut().shutdown().await
}
