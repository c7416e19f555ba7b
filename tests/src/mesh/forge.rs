//! A host of the world: a mirror of packages for dnf, and git repositories over TLS.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::Node;
use super::node::{FORGE, FORGE_NAMES};
use crate::space::{Process, run};
use crate::{image, until};

/// It ends with this.
#[derive(Debug)]
pub struct Forge {
    folder: TempDir,
    _servers: [Process; 2],
}

/// git's own server, behind nginx.
const CONFIGURATION: &str = "daemon off; user root; worker_processes 1; pid FOLDER/pid;
events {}
http {
    access_log FOLDER/log;
    client_body_temp_path FOLDER/body; proxy_temp_path FOLDER/proxy; fastcgi_temp_path FOLDER/fastcgi;
    uwsgi_temp_path FOLDER/uwsgi; scgi_temp_path FOLDER/scgi;
    server { listen ADDRESS:80; root FOLDER/rpms; }
    server {
        listen ADDRESS:443 ssl;
        ssl_certificate FOLDER/host.pem; ssl_certificate_key FOLDER/host.key;
        location / {
            fastcgi_pass unix:FOLDER/git;
            fastcgi_param SCRIPT_FILENAME /usr/lib/git-core/git-http-backend;
            fastcgi_param GIT_PROJECT_ROOT FOLDER/repositories;
            fastcgi_param GIT_HTTP_EXPORT_ALL yes;
            fastcgi_param PATH_INFO $uri;
            fastcgi_param QUERY_STRING $query_string;
            fastcgi_param REQUEST_METHOD $request_method;
            fastcgi_param CONTENT_TYPE $content_type;
            fastcgi_param CONTENT_LENGTH $content_length;
            fastcgi_param REMOTE_ADDR $remote_addr;
        }
    }
}
";

/// A certificate by an authority of its own, and what it serves.
const MAKE: &str = "umask 022
mkdir rpms repositories; tar -xf RPMS -C rpms
openssl req -x509 KEY -subj '/CN=The tests' -keyout ca.key -out ca.pem
openssl req KEY -subj / -keyout host.key -out host.csr
echo subjectAltName=critical,NAMES >host.ext
openssl x509 -req -in host.csr -CA ca.pem -CAkey ca.key -days 2 -extfile host.ext -out host.pem
details=istio/samples/bookinfo/src/details
mkdir -p $details; cp DETAILS $details
git -C istio init -q -b master; git -C istio add .
git -C istio -c user.name=t -c user.email=t@example.org commit -q -m Bookinfo
git clone -q --bare istio repositories/istio/istio.git";

impl Forge {
    /// Starts both in the world, at [`FORGE_NAMES`].
    pub fn start(node: &Node) -> Self {
        let folder = tempfile::tempdir_in("/run").unwrap();
        let details = Path::new(env!("CARGO_MANIFEST_DIR")).join("../images/details/details.rb");
        let names: Vec<String> = FORGE_NAMES
            .split(' ')
            .map(|name| format!("DNS:{name}"))
            .collect();
        let script = MAKE
            .replace("KEY", "-newkey rsa:2048 -nodes -days 2")
            .replace("RPMS", image("rpms.tar").to_str().unwrap())
            .replace("DETAILS", details.to_str().unwrap())
            .replace("NAMES", &names.join(","));
        let mut command = Command::new("sh");
        command.args(["-ec", &format!("exec >make.log 2>&1\n{script}")]);
        run(command.current_dir(&folder)).unwrap();

        let here = folder.path().to_str().unwrap();
        let configuration = CONFIGURATION
            .replace("FOLDER", here)
            .replace("ADDRESS", FORGE);
        fs::write(folder.path().join("nginx.conf"), configuration).unwrap();
        let start = |program: &str, arguments: &[&str]| {
            Process::start(node.command(program).args(arguments)).unwrap()
        };
        let git = start("fcgiwrap", &["-s", &format!("unix:{here}/git")]);
        let nginx = start(
            "nginx",
            &[
                "-e",
                &format!("{here}/errors"),
                "-c",
                &format!("{here}/nginx.conf"),
            ],
        );
        until("the forge does not come up", || {
            let open = || std::net::TcpStream::connect((FORGE, 443)).ok();
            node.inside(open).map(drop)
        });
        Self {
            folder,
            _servers: [git, nginx],
        }
    }

    /// The certificate that who trusts it has to know.
    pub fn authority(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// A line for each request that came.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }
}
