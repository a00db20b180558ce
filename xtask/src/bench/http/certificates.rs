//! Certificates for the other proxies: one root, and one certificate for either hop.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

/// The name that the server's hop proves.
pub const SERVER: &str = "server.bench.internal";

/// Files of one hop.
pub struct Files {
    /// The root that the other hop must chain to.
    pub root: PathBuf,
    /// The hop's certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Both in one file, as HAProxy wants them.
    pub both: PathBuf,
}

/// Makes P-256 certificates of both hops in `folder`: the client's, the server's.
pub fn pair(folder: &Path) -> Result<[Files; 2]> {
    fs::create_dir_all(folder)?;
    let mut root = CertificateParams::default();
    root.distinguished_name.push(DnType::CommonName, "bench root");
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate()?;
    let root_file = folder.join("root.pem");
    fs::write(&root_file, root.self_signed(&key)?.pem())?;
    let issuer = Issuer::new(root, key);
    let leaf = |name: &str| -> Result<Files> {
        let mut params = CertificateParams::new([name.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &issuer)?.pem();
        let file = |end: &str| folder.join(format!("{name}.{end}"));
        let files = Files { root: root_file.clone(), certificate: file("crt"), key: file("key"), both: file("pem") };
        fs::write(&files.both, format!("{certificate}{}", key.serialize_pem()))?;
        fs::write(&files.certificate, certificate)?;
        fs::write(&files.key, key.serialize_pem())?;
        Ok(files)
    };
    Ok([leaf("client.bench.internal")?, leaf(SERVER)?])
}
