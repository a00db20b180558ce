//! Where certificates come from: `--ca` and the options that belong to it.

use std::path::PathBuf;

/// As they stand on the command line or in the environment, not yet checked.
#[derive(Clone, Debug, clap::Args)]
pub struct CaArgs {
    /// Certificate authority: `local` (this machine alone) or `grpc://HOST:PORT` (`mesh-agent ca`, istiod, istio-csr).
    #[arg(long, env = "MESH_CA", default_value = "local")]
    ca: String,
    /// Roots that vouch for the server of a `grpc` CA, PEM; a file that changes is read again.
    #[arg(long, env = "MESH_CA_ROOT")]
    ca_root: Option<PathBuf>,
    /// The name that the server of a `grpc` CA must prove, if it is not the HOST.
    #[arg(long, env = "MESH_CA_SERVER_NAME")]
    ca_server_name: Option<String>,
    /// Bearer token by which the agent proves itself to a `grpc` CA of a cluster: the file of a projected service
    /// account token, read for each call.
    #[arg(long, env = "MESH_CA_TOKEN_FILE")]
    ca_token_file: Option<PathBuf>,
    /// One-time join token of this node, for the first contact with a stand-alone `mesh-agent ca`.
    #[arg(long, env = "MESH_JOIN_TOKEN_FILE")]
    join_token_file: Option<PathBuf>,
}

/// Certificate authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ca {
    /// Embedded, for one machine: the root key lies in the state directory.
    Local,
    /// Istio's `CreateCertificate` API.
    Grpc {
        /// HOST:PORT.
        address: String,
        /// Roots that vouch for its server, PEM.
        root: PathBuf,
        /// The name that its server must prove; the host of `address` if there is none.
        server_name: Option<String>,
        /// How the agent proves which node it is.
        login: CaLogin,
    },
}

/// How the agent proves itself to a CA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CaLogin {
    /// By the certificate of its node, for which it shows the one-time token in this file once.
    Join(Option<PathBuf>),
    /// By the bearer token in this file.
    TokenFile(PathBuf),
}

impl CaArgs {
    /// Checks them.
    pub(super) fn check(self) -> Result<Ca, String> {
        let Self { ca, ca_root, ca_server_name, ca_token_file, join_token_file } = self;
        if ca == "local" {
            return match ca_token_file {
                Some(_) => Err("--ca-token-file: --ca local takes no token; give --ca grpc://HOST:PORT".to_owned()),
                None => Ok(Ca::Local),
            };
        }
        let Some(address) = ca.strip_prefix("grpc://").filter(|address| address.contains(':')) else {
            return Err(format!("--ca `{ca}`: expected `local` or grpc://HOST:PORT"));
        };
        let Some(root) = ca_root else {
            return Err(format!("--ca {ca}: its server is not trusted without --ca-root FILE"));
        };
        let login = match (ca_token_file, join_token_file) {
            (Some(_), Some(_)) => {
                return Err(
                    "--ca-token-file and --join-token-file: a node proves itself in one way; drop one".to_owned()
                );
            }
            (Some(file), None) => CaLogin::TokenFile(file),
            (None, join) => CaLogin::Join(join),
        };
        Ok(Ca::Grpc { address: address.to_owned(), root, server_name: ca_server_name, login })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        ca: CaArgs,
    }

    fn check(args: &[&str]) -> Result<Ca, String> {
        Cli::try_parse_from(["mesh-agent"].iter().chain(args)).expect("clap takes it").ca.check()
    }

    #[test]
    fn a_node_proves_itself_in_one_way() {
        let grpc = ["--ca", "grpc://ca:15012", "--ca-root", "/r"];
        let login = |more: &[&str]| match check(&[&grpc, more].concat()) {
            Ok(Ca::Grpc { login, .. }) => Ok(login),
            Ok(Ca::Local) => Err("local".to_owned()),
            Err(error) => Err(error),
        };
        assert_eq!(login(&[]), Ok(CaLogin::Join(None)));
        assert_eq!(login(&["--join-token-file", "/j"]), Ok(CaLogin::Join(Some("/j".into()))));
        assert_eq!(login(&["--ca-token-file", "/t"]), Ok(CaLogin::TokenFile("/t".into())));
        let both = login(&["--ca-token-file", "/t", "--join-token-file", "/j"]);
        assert!(both.is_err_and(|error| error.contains("in one way")));
        assert!(check(&["--ca-token-file", "/t"]).is_err_and(|error| error.contains("takes no token")));
    }

    #[test]
    fn a_server_is_known_by_its_roots_and_its_name() {
        let args = ["--ca", "grpc://10.0.0.1:1", "--ca-root", "/r", "--ca-server-name", "istiod.istio-system.svc"];
        let named = match check(&args) {
            Ok(Ca::Grpc { server_name, .. }) => server_name,
            other => panic!("{other:?}"),
        };
        assert_eq!(named.as_deref(), Some("istiod.istio-system.svc"));
        assert_eq!(check(&[]), Ok(Ca::Local));
        assert!(check(&["--ca", "grpc://ca:1"]).is_err_and(|error| error.contains("--ca-root")));
        assert!(check(&["--ca", "https://ca"]).is_err_and(|error| error.contains("grpc://HOST:PORT")));
    }
}
