//! Tokens of service accounts: issued by TokenRequest, judged by TokenReview. JSON Web Tokens with the claims of the
//! real server's, but for a signature that is a random word: they are looked up here.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::cluster::Cluster;
use super::failure::Failure;
use super::time::seconds;

/// The audience of the API server itself.
pub const API_AUDIENCE: &str = "https://kubernetes.default.svc.cluster.local";
/// A TokenRequest for less is refused.
const SHORTEST: u64 = 600;
/// What a TokenRequest without a duration gets.
const USUAL: u64 = 3600;

/// All tokens issued.
#[derive(Debug, Default)]
pub struct Tokens {
    issued: BTreeMap<String, Token>,
    /// Tokens stay good when their pods are gone: a real server needs some seconds to notice a deletion by force.
    pub outlive_pods: bool,
}

/// What a token stands for.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// The service account's namespace.
    pub namespace: String,
    /// The service account.
    pub account: String,
    /// Its uid.
    pub account_uid: String,
    /// Whom it is for.
    pub audiences: Vec<String>,
    /// When it ends.
    pub until: Timestamp,
    /// The pod that it is bound to: name and uid.
    pub pod: Option<(String, String)>,
}

impl Token {
    /// `system:serviceaccount:NAMESPACE:NAME`
    #[must_use]
    pub fn user(&self) -> String {
        format!("system:serviceaccount:{}:{}", self.namespace, self.account)
    }
}

impl Cluster {
    /// Answers a TokenRequest for a service account.
    ///
    /// # Errors
    /// 404 without the account, 409 when the pod's uid is another, 422 for less than ten minutes.
    pub fn request_token(
        &mut self,
        namespace: &str,
        account: &str,
        request: &Value,
        now: Timestamp,
    ) -> Result<Value, Failure> {
        let asked = request["spec"]["expirationSeconds"].as_u64();
        if let Some(asked) = asked.filter(|&asked| asked < SHORTEST) {
            let what = format!("Invalid value: {asked}: may not specify a duration less than 10 minutes");
            let wrong = [("FieldValueInvalid", "spec.expirationSeconds".to_owned(), what)];
            return Err(Failure::invalid("TokenRequest.authentication.k8s.io", "", &wrong));
        }
        let audiences = strings(&request["spec"]["audiences"]);
        let bound = &request["spec"]["boundObjectRef"];
        let pod = match bound["kind"].as_str() {
            Some("Pod") => {
                let name = bound["name"].as_str().unwrap_or_default();
                let key = (namespace.to_owned(), name.to_owned());
                let live = self.store.get("pods", &key).ok_or_else(|| Failure::not_found("pods", name))?;
                let uid = live["metadata"]["uid"].as_str().unwrap_or_default();
                if bound["uid"].as_str().is_some_and(|asked| !asked.is_empty() && asked != uid) {
                    let why = format!("the UID in the bound object reference ({}) does not match {uid}", bound["uid"]);
                    return Err(Failure::conflict("pods", name, &why));
                }
                if live["spec"]["serviceAccountName"].as_str().unwrap_or("default") != account {
                    let why = "cannot bind token for serviceaccount to pod running with different serviceaccount";
                    return Err(Failure::bad_request(why));
                }
                Some(name)
            }
            Some(kind) => return Err(Failure::bad_request(format!("cannot bind a token to a {kind}"))),
            None => None,
        };
        let lifetime = Duration::from_secs(asked.unwrap_or(USUAL));
        let audience_list: Vec<&str> = audiences.iter().map(String::as_str).collect();
        let (word, until) = self.issue_token((namespace, account), &audience_list, pod, lifetime, now)?;
        let mut answer = request.clone();
        answer["kind"] = json!("TokenRequest");
        answer["apiVersion"] = json!("authentication.k8s.io/v1");
        answer["metadata"] = json!({"name": account, "namespace": namespace, "creationTimestamp": seconds(now)});
        answer["spec"]["expirationSeconds"] = json!(lifetime.as_secs());
        if audiences.is_empty() {
            answer["spec"]["audiences"] = json!([API_AUDIENCE]);
        }
        answer["status"] = json!({"token": word, "expirationTimestamp": seconds(until)});
        Ok(answer)
    }

    /// Issues a token of any lifetime; gives its word and its end.
    ///
    /// # Errors
    /// 404 without the account or the pod.
    pub fn issue_token(
        &mut self,
        (namespace, account): (&str, &str),
        audiences: &[&str],
        pod: Option<&str>,
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<(String, Timestamp), Failure> {
        let uid = |resource: &str, name: &str| {
            let live = self.store.get(resource, &(namespace.to_owned(), name.to_owned()));
            let live = live.ok_or_else(|| Failure::not_found(resource, name))?;
            Ok(live["metadata"]["uid"].as_str().unwrap_or_default().to_owned())
        };
        let account_uid = uid("serviceaccounts", account)?;
        let pod = pod.map(|pod| Ok((pod.to_owned(), uid("pods", pod)?))).transpose()?;
        let until = now.checked_add(SignedDuration::try_from(lifetime).unwrap_or(SignedDuration::MAX)).unwrap_or(now);
        let audiences = if audiences.is_empty() { vec![API_AUDIENCE] } else { audiences.to_vec() };
        let token = Token {
            namespace: namespace.to_owned(),
            account: account.to_owned(),
            account_uid,
            audiences: audiences.into_iter().map(str::to_owned).collect(),
            until,
            pod,
        };
        let word = word(&token, now);
        self.tokens.issued.insert(word.clone(), token);
        Ok((word, until))
    }

    /// What a valid token stands for.
    ///
    /// # Errors
    /// Why it is not valid: unknown, over, or of an account or a pod that is gone.
    pub fn token(&self, word: &str, now: Timestamp) -> Result<&Token, String> {
        let token = self.tokens.issued.get(word).ok_or("invalid bearer token")?;
        if now >= token.until {
            return Err("service account token has expired".to_owned());
        }
        let live_uid = |resource: &str, name: &str| {
            let live = self.store.get(resource, &(token.namespace.clone(), name.to_owned()));
            live.and_then(|live| live["metadata"]["uid"].as_str().map(str::to_owned))
        };
        if live_uid("serviceaccounts", &token.account).as_deref() != Some(token.account_uid.as_str()) {
            return Err("service account token has been invalidated".to_owned());
        }
        if let Some((name, uid)) = &token.pod
            && !self.tokens.outlive_pods
            && live_uid("pods", name).as_ref() != Some(uid)
        {
            return Err(format!("service account token is bound to a pod that is gone: {name} ({uid})"));
        }
        Ok(token)
    }

    /// Answers a TokenReview.
    #[must_use]
    pub fn review_token(&self, review: &Value, now: Timestamp) -> Value {
        let word = review["spec"]["token"].as_str().unwrap_or_default();
        let mut wanted = strings(&review["spec"]["audiences"]);
        if wanted.is_empty() {
            wanted.push(API_AUDIENCE.to_owned());
        }
        let judged = self.token(word, now).and_then(|token| {
            let meant: Vec<&String> = wanted.iter().filter(|audience| token.audiences.contains(audience)).collect();
            if meant.is_empty() {
                return Err(format!(
                    "token audiences {:?} is invalid for the target audiences {wanted:?}",
                    token.audiences
                ));
            }
            Ok(json!({"authenticated": true, "user": self.user_of(token), "audiences": meant}))
        });
        let status =
            judged.unwrap_or_else(|why| json!({"user": {}, "error": format!("[invalid bearer token, {why}]")}));
        json!({
            "kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1",
            "metadata": {"creationTimestamp": null}, "spec": review["spec"], "status": status,
        })
    }

    /// Whom a token stands for, as a review tells it.
    pub(super) fn user_of(&self, token: &Token) -> Value {
        let mut extra = json!({});
        if let Some((name, uid)) = &token.pod {
            extra["authentication.kubernetes.io/pod-name"] = json!([name]);
            extra["authentication.kubernetes.io/pod-uid"] = json!([uid]);
            let pod = self.store.get("pods", &(token.namespace.clone(), name.clone()));
            if let Some(node) = pod.and_then(|pod| pod["spec"]["nodeName"].as_str()) {
                extra["authentication.kubernetes.io/node-name"] = json!([node]);
                let node = self.store.get("nodes", &(String::new(), node.to_owned()));
                if let Some(node) = node {
                    extra["authentication.kubernetes.io/node-uid"] = json!([node["metadata"]["uid"]]);
                }
            }
        }
        let accounts = format!("system:serviceaccounts:{}", token.namespace);
        json!({
            "username": token.user(),
            "uid": token.account_uid,
            "groups": ["system:serviceaccounts", accounts, "system:authenticated"],
            "extra": extra,
        })
    }
}

/// The token as its bearer has it.
fn word(token: &Token, now: Timestamp) -> String {
    let mut kubernetes = json!({
        "namespace": token.namespace,
        "serviceaccount": {"name": token.account, "uid": token.account_uid},
    });
    if let Some((name, uid)) = &token.pod {
        kubernetes["pod"] = json!({"name": name, "uid": uid});
    }
    let claims = json!({
        "aud": token.audiences, "iss": API_AUDIENCE, "sub": token.user(),
        "iat": now.as_second(), "nbf": now.as_second(), "exp": token.until.as_second(),
        "kubernetes.io": kubernetes,
    });
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signature = format!("{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>());
    format!("{}.{}.{signature}", part(json!({"alg": "RS256", "kid": "harness"})), part(claims))
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube_api::time::now;

    fn cluster() -> Cluster {
        let mut cluster = Cluster::new();
        let named = |kind: &str, name: &str| json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}});
        let mut pod = named("Pod", "web-1");
        pod["metadata"]["uid"] = json!("u1");
        pod["spec"] = json!({"nodeName": "node-a", "serviceAccountName": "web"});
        for object in [named("ServiceAccount", "web"), named("Node", "node-a"), pod] {
            cluster.put(object, now()).expect("put");
        }
        cluster
    }

    fn issue(cluster: &mut Cluster) -> String {
        let request = json!({"spec": {"audiences": ["mesh"], "expirationSeconds": 600,
            "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "web-1", "uid": "u1"}}});
        let answer = cluster.request_token("default", "web", &request, now()).expect("a token");
        answer["status"]["token"].as_str().expect("a word").to_owned()
    }

    fn review(cluster: &Cluster, word: &str, audience: &str, after_seconds: i64) -> Value {
        let now = now() + SignedDuration::from_secs(after_seconds);
        let review = json!({"spec": {"token": word, "audiences": [audience]}});
        cluster.review_token(&review, now)["status"].clone()
    }

    #[test]
    fn a_bound_token_tells_whose_it_is_and_where() {
        let mut cluster = cluster();
        let word = issue(&mut cluster);
        let status = review(&cluster, &word, "mesh", 0);
        assert_eq!(status["authenticated"], true);
        assert_eq!(status["user"]["username"], "system:serviceaccount:default:web");
        assert_eq!(status["audiences"], json!(["mesh"]));
        let extra = &status["user"]["extra"];
        assert_eq!(extra["authentication.kubernetes.io/pod-uid"], json!(["u1"]));
        assert_eq!(extra["authentication.kubernetes.io/node-name"], json!(["node-a"]));
    }

    #[test]
    fn a_token_is_refused_for_others_later_and_after_its_pod() {
        let mut cluster = cluster();
        let word = issue(&mut cluster);
        let refused = |status: Value| {
            assert_eq!(status.get("authenticated"), None, "{status}");
            assert!(status["error"].is_string(), "{status}");
        };
        refused(review(&cluster, &word, "another", 0));
        refused(review(&cluster, &word, "mesh", 601));
        refused(review(&cluster, "made up", "mesh", 0));
        let pods = cluster.kind(None, "Pod").expect("served").clone();
        cluster.forget(&pods, &("default".to_owned(), "web-1".to_owned()));
        refused(review(&cluster, &word, "mesh", 0));
    }

    #[test]
    fn what_cannot_be_bound_is_not_issued() {
        let mut cluster = cluster();
        let mut refused = |account: &str, spec: Value| {
            let outcome = cluster.request_token("default", account, &json!({"spec": spec}), now());
            outcome.map(drop).map_err(|failure| failure.code)
        };
        let bound = |uid: &str| json!({"kind": "Pod", "name": "web-1", "uid": uid});
        assert_eq!(refused("web", json!({"expirationSeconds": 599})), Err(422));
        assert_eq!(refused("none", json!({})), Err(404));
        assert_eq!(refused("web", json!({"boundObjectRef": bound("u2")})), Err(409));
        assert_eq!(refused("web", json!({"boundObjectRef": {"kind": "Pod", "name": "none"}})), Err(404));
        assert_eq!(refused("web", json!({"boundObjectRef": bound("u1")})), Ok(()));
    }
}
