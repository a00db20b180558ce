//! A root in a mounted Secret: read at the start, and again when it changes. And the Secret itself, for the replica
//! that finds none.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use zeroize::Zeroizing;

use super::super::authority::Authority;
use super::super::clock::Clock;
use super::super::error::CertError;
use super::super::root::{NewRoot, RootPem};
use super::super::state;
use super::in_force::RootInForce;

/// The names of `kubernetes.io/tls` and cert-manager.
const CERT: &str = "tls.crt";
const KEY: &str = "tls.key";
const ROOTS: &str = "ca.crt";
const EXTRA_ROOTS: &str = "extra-roots.crt";
/// How often the directory is read again.
const EVERY: Duration = Duration::from_secs(1);
const REMEDY: &str = "mend the Secret that is mounted there: tls.crt (the certificate that signs, then its chain), \
                      tls.key (ECDSA P-256), ca.crt (the roots to trust)";

/// What a Secret holds, by key. Not for logs.
pub type SecretData = BTreeMap<String, Zeroizing<Vec<u8>>>;

/// The future of [`RootSecret`]'s calls.
pub type SecretFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, String>> + Send + 'a>>;

/// The Secret that is mounted as the root's directory, by the API.
pub trait RootSecret: Debug + Send + Sync {
    /// Its name, for messages.
    fn name(&self) -> String;

    /// What it holds; `None` when it is not there.
    fn read(&self) -> SecretFuture<'_, Option<SecretData>>;

    /// Makes it; false when it is there already.
    fn create(&self, data: SecretData) -> SecretFuture<'_, bool>;
}

/// The directory.
#[derive(Clone, Debug)]
pub struct RootDir {
    dir: PathBuf,
    trust_domain: String,
    clock: Arc<dyn Clock>,
}

impl RootDir {
    /// The root of `trust_domain` in `dir`.
    #[must_use]
    pub fn new(dir: PathBuf, trust_domain: &str, clock: Arc<dyn Clock>) -> Self {
        Self { dir, trust_domain: trust_domain.to_owned(), clock }
    }

    /// The root in the directory. Without one there, that of `secret`, which is made if it is not there.
    ///
    /// # Errors
    /// [`CertError::StateDir`] naming the file or Secret, what is wrong with it and what to do.
    pub async fn open(&self, secret: Option<&dyn RootSecret>) -> Result<RootInForce, CertError> {
        let pem = match (self.read()?, secret) {
            (Some(pem), _) => pem,
            (None, Some(secret)) => self.of_secret(secret).await?,
            (None, None) => {
                let remedy = "mount a Secret with tls.crt, tls.key and ca.crt there (cert-manager's Certificate with \
                              isCA makes one), or let the CA make one with --create-root-secret NAMESPACE/NAME";
                return Err(CertError::state(&self.dir, format!("holds no {KEY} and no {CERT}"), remedy));
            }
        };
        Ok(RootInForce::new(self.authority(&pem)?))
    }

    /// Reads the directory again and again, and puts what has changed in force. What cannot be used is logged once and
    /// counted by `failed`; the root before it stays.
    pub async fn follow(self, root: RootInForce, failed: impl Fn() + Send) {
        let mut seen = Vec::new();
        loop {
            tokio::time::sleep(EVERY).await;
            let print = self.print();
            if print == seen {
                continue;
            }
            match self.read().and_then(|pem| pem.map(|pem| self.authority(&pem)).transpose()) {
                Ok(Some(authority)) => root.replace(authority),
                // A Secret that the first start has made is mounted later.
                Ok(None) if seen.is_empty() => {}
                Ok(None) => tracing::warn!(dir = %self.dir.display(), "the root is gone from here; it stays in force"),
                Err(error) => {
                    failed();
                    tracing::error!(%error, "the new root cannot be used; the one before it stays in force");
                }
            }
            // What was read may be newer than what was printed: then it is read once more.
            seen = print;
        }
    }

    fn authority(&self, pem: &RootPem) -> Result<Authority, CertError> {
        Authority::new(pem, &self.trust_domain, Arc::clone(&self.clock))
    }

    fn read(&self) -> Result<Option<RootPem>, CertError> {
        // The mode says nothing: what a pod mounts, its processes alone see.
        root_pem(&self.dir, |name| state::read_public(&self.dir.join(name)))
    }

    /// A print of everything in the directory that matters; an error is a print too.
    fn print(&self) -> Vec<u8> {
        let mut context = digest::Context::new(&digest::SHA256);
        for name in [CERT, KEY, ROOTS, EXTRA_ROOTS] {
            match state::read_public(&self.dir.join(name)) {
                Ok(Some(bytes)) => {
                    context.update(&(bytes.len() as u64).to_be_bytes());
                    context.update(&bytes);
                }
                Ok(None) => context.update(b"-"),
                Err(error) => context.update(error.to_string().as_bytes()),
            }
        }
        context.finish().as_ref().to_vec()
    }

    /// The Secret's root. Of several replicas that find none one makes it, and all use that one.
    async fn of_secret(&self, secret: &dyn RootSecret) -> Result<RootPem, CertError> {
        let place = PathBuf::from(format!("Secret {}", secret.name()));
        let wrong = |reason: String| {
            let remedy = "give the CA's service account `get` on this Secret and `create` on Secrets of its namespace";
            CertError::state(&place, reason, remedy)
        };
        let mut data = secret.read().await.map_err(wrong)?;
        if data.is_none() {
            let new = NewRoot::make(&self.trust_domain, self.clock.now())?;
            let bytes = |pem: &Zeroizing<String>| Zeroizing::new(pem.as_bytes().to_vec());
            let made: SecretData = [(KEY, &new.key), (CERT, &new.cert), (ROOTS, &new.cert)]
                .map(|(name, pem)| (name.to_owned(), bytes(pem)))
                .into();
            if secret.create(made.clone()).await.map_err(wrong)? {
                tracing::info!(secret = secret.name(), "a new root was made: keep a copy of this Secret");
                data = Some(made);
            } else {
                data = secret.read().await.map_err(wrong)?;
            }
        }
        let mut data = data.ok_or_else(|| wrong("was there and is gone".to_owned()))?;
        root_pem(&place, |name| Ok(data.remove(name)))?
            .ok_or_else(|| CertError::state(&place, format!("holds no {KEY} and no {CERT}"), REMEDY))
    }
}

/// What `read` finds under the names of a TLS Secret; `None` when there is neither key nor certificate. An empty file
/// is none: `kubernetes.io/tls` wants the keys to be there.
fn root_pem(
    place: &Path,
    mut read: impl FnMut(&str) -> Result<Option<Zeroizing<Vec<u8>>>, CertError>,
) -> Result<Option<RootPem>, CertError> {
    let mut found = |name: &str| -> Result<_, CertError> {
        let bytes = read(name)?.filter(|bytes| !bytes.is_empty());
        Ok(bytes.map(|bytes| (place.join(name), bytes)))
    };
    let (cert, key) = (found(CERT)?, found(KEY)?);
    let roots = [found(ROOTS)?, found(EXTRA_ROOTS)?].into_iter().flatten().collect();
    match (cert, key) {
        (Some(cert), Some(key)) => Ok(Some(RootPem { key, cert, roots, remedy: REMEDY })),
        (None, None) => Ok(None),
        (None, _) => Err(CertError::state(&place.join(CERT), "is missing or empty", REMEDY)),
        (_, None) => Err(CertError::state(&place.join(KEY), "is missing or empty", REMEDY)),
    }
}

#[cfg(test)]
#[path = "root_dir_tests.rs"]
mod tests;
