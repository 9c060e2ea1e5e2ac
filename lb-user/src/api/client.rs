use std::io;
use std::path::{Path, PathBuf};

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use super::{BODY_MAX, Refusal};

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No daemon.
    #[error(
        "no weir answers at {path} ({source}): start it by `weir run`, or name its socket with --socket"
    )]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The daemon refused.
    #[error("{}", .0.join("\n"))]
    Refused(Vec<String>),
    /// The daemon would not read it.
    #[error("the request has {0} bytes: allowed are {BODY_MAX}")]
    TooLarge(usize),
    /// The exchange failed.
    #[error("talking to weir")]
    Http(#[from] hyper::Error),
    /// The request could not be made.
    #[error("the request could not be made")]
    Request(#[from] hyper::http::Error),
    /// The answer is not what this version expects.
    #[error("the daemon's answer is not understood (status {status}): is it of another version?")]
    Answer {
        /// The status.
        status: StatusCode,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
}

/// A client of the API.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// Returns a client of the daemon at `socket`.
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.into(),
        }
    }

    /// Sends a request without a body.
    pub async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
    ) -> Result<T, ClientError> {
        self.exchange(method, path, Bytes::new()).await
    }

    /// Sends a request with a body.
    pub async fn send_json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|source| ClientError::Answer {
            status: StatusCode::OK,
            source,
        })?;
        self.exchange(method, path, body.into()).await
    }

    async fn exchange<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, ClientError> {
        if body.len() > BODY_MAX {
            return Err(ClientError::TooLarge(body.len()));
        }
        let stream = UnixStream::connect(&self.socket).await;
        let stream = stream.map_err(|source| ClientError::Connect {
            path: self.socket.clone(),
            source,
        })?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(connection);
        let request = hyper::Request::builder()
            .method(method)
            .uri(path)
            .header(hyper::header::HOST, "weir")
            .header(hyper::header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        driver.abort();
        let answer = |source| ClientError::Answer { status, source };
        if status.is_success() {
            serde_json::from_slice(&body).map_err(answer)
        } else {
            let refusal: Refusal = serde_json::from_slice(&body).map_err(answer)?;
            Err(ClientError::Refused(refusal.errors))
        }
    }
}
