//! The real `memsync serve` on a bucket.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::common::address::served_at;
use crate::common::killed::Killed;
use crate::common::proxy::{Client, TOKEN};
use crate::common::s3::{self, Server};

/// A command with the bucket in its environment.
pub(crate) fn memsync(home: &Path, server: &Server) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin("memsync"));
    command.env_clear().env("MEMSYNC_HOME", home).env("MEMSYNC_TOKEN", TOKEN).env("S3_BUCKET", s3::BUCKET);
    command.env("S3_ENDPOINT_URL", server.endpoint());
    command.env("AWS_ACCESS_KEY_ID", s3::ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", s3::SECRET_KEY);
    command
}

/// A proxy in its own process.
pub(crate) struct Serving {
    pub child: Killed,
    /// `None`: it died before it served.
    pub addr: Option<SocketAddr>,
}

impl Serving {
    pub(crate) async fn start(home: &Path, server: &Server, env: &[(&str, &str)]) -> Self {
        let log = home.join("serve.log");
        let mut command = memsync(home, server);
        command.envs(env.iter().copied()).args(["serve", "--listen", "127.0.0.1:0"]);
        let child = command.stderr(Stdio::from(File::create(&log).unwrap())).spawn().unwrap();
        let mut serving = Self { child: Killed(child), addr: None };
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let text = fs::read_to_string(&log).unwrap();
            serving.addr = served_at(&text);
            if serving.addr.is_some() || serving.child.try_wait().unwrap().is_some() {
                return serving;
            }
            assert!(Instant::now() < deadline, "it never served:\n{text}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.addr.expect("it serves")).await
    }

    /// Waits for the end of the proxy, and returns its exit status.
    pub(crate) async fn ended(mut self) -> ExitStatus {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it lives on");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
