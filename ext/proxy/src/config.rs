//! The limits and timeouts of one data plane, given once at its construction.
//! Must never be changed while the plane runs: everything that changes is pushed as a command.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Everything that a plane needs to know before it listens.
#[derive(Debug, Clone)]
pub struct Config {
    /// Address and port to listen on; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// Unix socket of the server that answers everything which is not an inference call.
    pub control_socket: PathBuf,
    /// Tenant of a model name that names only `namespace/function`.
    pub default_tenant: String,
    /// Largest request body in bytes.
    pub body_bytes_max: u64,
    /// Largest request head in bytes.
    pub head_bytes_max: usize,
    /// Most open client connections.
    pub connections_max: usize,
    /// Most calls parked over all functions.
    pub parked_max: usize,
    /// Time for a client to send a whole request head.
    pub head_timeout: Duration,
    /// Time that a client connection may rest between two requests.
    pub keep_alive_timeout: Duration,
    /// Time to open a connection to a worker.
    pub connect_timeout: Duration,
    /// Time from the request to the head of the worker's answer.
    pub first_byte_timeout: Duration,
    /// Longest silence between two frames of an answer or of an upload.
    pub idle_timeout: Duration,
    /// Longest silence of the control server, which also streams logs.
    pub control_idle_timeout: Duration,
    /// Longest rest of a pooled worker connection; below the keep-alive of common servers (5 s).
    pub pool_idle_timeout: Duration,
    /// Secret of this process under which credentials are hashed; None lets everybody in.
    pub auth_key: Option<[u8; 32]>,
    /// Failures of a worker in a row, 5xx or worse, after which it is given up; 0 for never.
    pub eject_failures: u32,
    /// Another plane may listen on the same port, which this one takes over from or hands over to.
    pub share_port: bool,
    /// A socket that listens on the port already and is held by others, too; taken at the start.
    pub listening: Arc<Mutex<Option<OwnedFd>>>,
    /// Certificate chain and key as PEM files; the listener speaks TLS when they are given.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Threads of the data plane, 0 for one per core.
    pub threads: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 4000)),
            control_socket: PathBuf::from("gateway.sock"),
            default_tenant: "public".to_owned(),
            body_bytes_max: 64 << 20,
            head_bytes_max: 64 << 10,
            connections_max: 32_768,
            parked_max: 20_000,
            head_timeout: Duration::from_secs(10),
            keep_alive_timeout: Duration::from_secs(75),
            connect_timeout: Duration::from_secs(2),
            first_byte_timeout: Duration::from_secs(600),
            idle_timeout: Duration::from_secs(300),
            control_idle_timeout: Duration::from_secs(3600),
            pool_idle_timeout: Duration::from_secs(4),
            auth_key: None,
            eject_failures: 10,
            share_port: false,
            listening: Arc::default(),
            tls: None,
            threads: 0,
        }
    }
}
