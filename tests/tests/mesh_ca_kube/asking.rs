//! Asking an authority as an agent does, with the project's own client, but with any token and for anything.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow, bail};
use mesh_agent::identity::{CaAuth, CaClient, CertError, GrpcCa, GrpcTarget, issue};
use mesh_agent::model::identity::Identity;
use mesh_tests::agent::TRUST_DOMAIN;
use mesh_tests::kube_ca::{self, KubeCa};
use mesh_tests::topology::Node;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};

const TTL: Duration = Duration::from_secs(3600);

/// What came of it.
#[derive(Debug, PartialEq, Eq)]
pub enum Asked {
    /// A certificate that is what it should be.
    Issued,
    /// The CA's words against it.
    Refused(String),
    /// It may be asked again.
    Away(String),
}

/// The word at the beginning of a refusal.
pub fn outcome(asked: &Asked) -> Option<&str> {
    match asked {
        Asked::Refused(words) => words.split_once(':').map(|(word, _)| word),
        _ => None,
    }
}

/// Asks the replica of `node`, from there, for `account` (`namespace/name`).
pub fn ask(ca: &KubeCa, node: &Node, token: &str, account: &str) -> Result<Asked> {
    let identity = identity_of(account)?;
    with_client(ca, node, token, async |client| issue(&client, &identity, TTL, SystemTime::now()).await.map(drop))
}

/// The same with a CSR for other names.
pub fn ask_with(ca: &KubeCa, node: &Node, token: &str, account: &str, csr: &[&str]) -> Result<Asked> {
    let identity = identity_of(account)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    for account in csr {
        params.subject_alt_names.push(SanType::URI(identity_of(account)?.to_string().as_str().try_into()?));
    }
    let csr = params.serialize_request(&KeyPair::generate()?)?.pem()?;
    with_client(ca, node, token, async |client| client.sign(&csr, &identity, TTL).await.map(drop))
}

fn identity_of(account: &str) -> Result<Identity> {
    let (namespace, name) = account.split_once('/').with_context(|| format!("`{account}` is not namespace/name"))?;
    Ok(Identity::new(TRUST_DOMAIN, namespace, name)?)
}

fn with_client(
    ca: &KubeCa,
    node: &Node,
    token: &str,
    call: impl AsyncFnOnce(GrpcCa) -> Result<(), CertError> + Send,
) -> Result<Asked> {
    let file = node.folder().join("shown-token");
    std::fs::write(&file, token)?;
    let target =
        GrpcTarget { address: kube_ca::address(node).to_string(), root_file: ca.roots_file(), server_name: None };
    let client = GrpcCa::new(target, CaAuth::BearerFile(file))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match node.netns().run(|| runtime.block_on(call(client)))? {
        Ok(()) => Ok(Asked::Issued),
        Err(CertError::CaRefused { reason, .. }) => Ok(Asked::Refused(reason)),
        Err(CertError::CaUnreachable { reason, .. }) => Ok(Asked::Away(reason)),
        Err(error) => bail!(anyhow!(error)),
    }
}
