//! What the certificate authority asks of the API server besides objects: whose a token is, the Secret of its root, and
//! to publish its roots (decision 0011). Decides nothing.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};

use super::Cluster;
use super::connect::describe;

/// How long one call may take.
const ANSWER: Duration = Duration::from_secs(5);
/// All replicas apply the roots under this name: they say the same.
const MANAGER: &str = "mesh-agent-ca";
/// What a TLS Secret made here says of itself.
const SECRET_TYPE: &str = "kubernetes.io/tls";
/// A label by which people find what was made for them.
const MADE_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "mesh-agent");
/// `user.extra` of a bound token.
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const CONFLICT: u16 = 409;

/// What the API server says of a token that it takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReviewedToken {
    /// Whose it is.
    pub user: String,
    /// Those of the audiences asked about that it is for.
    pub audiences: Vec<String>,
    /// Name and uid of the pod that it is bound to.
    pub pod: Option<(String, String)>,
    /// The node that it is bound to.
    pub node: Option<String>,
}

/// Why the API server says nothing of whose a token is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unreviewed {
    /// It does not take the token; its words.
    Refused(String),
    /// It has not answered, or does not let us ask.
    Away(String),
}

impl Cluster {
    /// Asks whose `token` is, as one for `audience`.
    ///
    /// # Errors
    /// [`Unreviewed`].
    pub async fn review_token(&self, token: &str, audience: &str) -> Result<ReviewedToken, Unreviewed> {
        let spec = TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(vec![audience.to_owned()]) };
        let review = TokenReview { metadata: ObjectMeta::default(), spec, status: None };
        let api = Api::<TokenReview>::all(self.client.clone());
        let (parameters, asked) = (PostParams::default(), api);
        let answer = in_time(asked.create(&parameters, &review)).await;
        let answer = answer.map_err(|failure| Unreviewed::Away(format!("TokenReview: {}", failure.reason)))?;
        let status = answer.status.unwrap_or_default();
        let refused = |words: Option<String>| Unreviewed::Refused(words.unwrap_or_else(|| "not authenticated".into()));
        let (true, Some(user)) = (status.authenticated == Some(true), status.user) else {
            return Err(refused(status.error));
        };
        let extra = user.extra.unwrap_or_default();
        let said = |key: &str| extra.get(key).and_then(|values| values.first()).cloned();
        Ok(ReviewedToken {
            user: user.username.unwrap_or_default(),
            audiences: status.audiences.unwrap_or_default(),
            pod: said(POD_NAME).zip(said(POD_UID)),
            node: said(NODE_NAME),
        })
    }

    /// What a Secret holds, by key; `None` when it is not there.
    ///
    /// # Errors
    /// What the API server says.
    pub async fn secret(&self, namespace: &str, name: &str) -> Result<Option<BTreeMap<String, Vec<u8>>>, String> {
        let api = Api::<Secret>::namespaced(self.client.clone(), namespace);
        let found = in_time(api.get_opt(name)).await.map_err(|failure| failure.reason)?;
        let data = |secret: Secret| secret.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0));
        Ok(found.map(|secret| data(secret).collect()))
    }

    /// Makes a TLS Secret; false when there is one of that name already.
    ///
    /// # Errors
    /// What the API server says.
    pub async fn create_secret(
        &self,
        namespace: &str,
        name: &str,
        data: BTreeMap<String, Vec<u8>>,
    ) -> Result<bool, String> {
        let metadata = ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            labels: Some([(MADE_BY.0.to_owned(), MADE_BY.1.to_owned())].into()),
            ..ObjectMeta::default()
        };
        let data = data.into_iter().map(|(key, value)| (key, ByteString(value))).collect();
        let secret = Secret { metadata, type_: Some(SECRET_TYPE.to_owned()), data: Some(data), ..Secret::default() };
        let api = Api::<Secret>::namespaced(self.client.clone(), namespace);
        match in_time(api.create(&PostParams::default(), &secret)).await {
            Ok(_) => Ok(true),
            Err(failure) if failure.code == Some(CONFLICT) => Ok(false),
            Err(failure) => Err(failure.reason),
        }
    }

    /// Sees to it that a ConfigMap has `data`; what others have put beside it stays.
    ///
    /// # Errors
    /// What the API server says.
    pub async fn apply_config_map(
        &self,
        namespace: &str,
        name: &str,
        data: BTreeMap<String, String>,
    ) -> Result<(), String> {
        let object = serde_json::json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": namespace, "labels": {MADE_BY.0: MADE_BY.1}},
            "data": data,
        });
        let api = Api::<ConfigMap>::namespaced(self.client.clone(), namespace);
        let parameters = PatchParams::apply(MANAGER).force();
        in_time(api.patch(name, &parameters, &Patch::Apply(&object))).await.map(drop).map_err(|failure| failure.reason)
    }
}

/// Why a call came to nothing.
struct Failure {
    /// The API server's code, if it answered.
    code: Option<u16>,
    reason: String,
}

async fn in_time<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
    match tokio::time::timeout(ANSWER, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => {
            let code = if let kube::Error::Api(status) = &error { Some(status.code) } else { None };
            Err(Failure { code, reason: describe(&error) })
        }
        Err(_) => Err(Failure { code: None, reason: format!("no answer within {} s", ANSWER.as_secs()) }),
    }
}
