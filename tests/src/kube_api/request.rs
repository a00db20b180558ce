//! A request taken apart: the way to a resource, the query, who asks and in which form.

use std::collections::BTreeMap;

use super::kind::Kind;

/// A request with its body.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// `GET`…
    pub method: String,
    /// Without the query.
    pub path: String,
    /// Decoded; of a parameter given twice the last counts.
    pub query: BTreeMap<String, String>,
    /// `Accept`
    pub accept: String,
    /// `Content-Type`
    pub content_type: String,
    /// `User-Agent`
    pub user_agent: String,
    /// The token of `Authorization: Bearer`.
    pub token: Option<String>,
    /// The body.
    pub body: Vec<u8>,
    /// The query as it was written.
    pub query_text: String,
    /// The client wants to speak WebSocket.
    pub upgrade: Option<Upgrade>,
}

/// What a client says that wants to speak WebSocket.
#[derive(Clone, Debug, Default)]
pub struct Upgrade {
    /// `Sec-WebSocket-Key`
    pub key: String,
    /// `Sec-WebSocket-Protocol`
    pub protocols: String,
}

/// Where a path leads within a group and version.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// The kind.
    pub kind: Kind,
    /// None for cluster-wide kinds, and for all namespaces.
    pub namespace: Option<String>,
    /// None for the collection.
    pub name: Option<String>,
    /// `status`, `token`, `exec`
    pub subresource: Option<String>,
}

impl Request {
    /// A query parameter; empty when it is not there.
    #[must_use]
    pub fn parameter(&self, name: &str) -> &str {
        self.query.get(name).map_or("", String::as_str)
    }

    /// All the values of a parameter that may be given several times.
    #[must_use]
    pub fn all(&self, name: &str) -> Vec<String> {
        pairs(&self.query_text).filter(|(of, _)| of == name).map(|(_, value)| value).collect()
    }

    /// Whether a parameter is `true` or `1`.
    #[must_use]
    pub fn flag(&self, name: &str) -> bool {
        matches!(self.parameter(name), "true" | "1")
    }

    /// Whether the first form accepted is this one, e.g. `as=PartialObjectMetadata`.
    #[must_use]
    pub fn wants(&self, parameter: &str) -> bool {
        let first = self.accept.split(',').next().unwrap_or_default();
        first.split(';').any(|part| part.trim() == parameter)
    }

    /// Whether plain JSON is among the forms accepted.
    #[must_use]
    pub fn takes_json(&self) -> bool {
        let plain = |form: &str| {
            let mut parts = form.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default();
            matches!(media, "" | "*/*" | "application/*" | "application/json")
                && parts.all(|part| !part.starts_with("as=") || part.starts_with("as=PartialObjectMetadata"))
        };
        self.accept.split(',').any(|form| plain(form.trim()))
    }
}

/// Takes a query apart.
#[must_use]
pub fn query(text: &str) -> BTreeMap<String, String> {
    pairs(text).collect()
}

fn pairs(text: &str) -> impl Iterator<Item = (String, String)> {
    text.split('&')
        .filter(|part| !part.is_empty())
        .map(|part| part.split_once('=').unwrap_or((part, "")))
        .map(|(name, value)| (decode(name), decode(value)))
}

/// Percent-decodes; `+` is a space.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match (first, hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = after.get(2..).unwrap_or_default();
                continue;
            }
            (b'+', _) => bytes.push(b' '),
            _ => bytes.push(first),
        }
        rest = after;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Finds the place that `path` leads to among `kinds`; none when nothing is served there.
#[must_use]
pub fn place(path: &str, kinds: &[Kind]) -> Option<Place> {
    let parts: Vec<String> = path.split('/').filter(|part| !part.is_empty()).map(decode).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return None,
    };
    let (namespace, rest) = match rest {
        // `namespaces/NAME/status` is about the namespace itself.
        ["namespaces", name, inner @ ..] if !matches!(inner, [] | ["status" | "finalize"]) => (Some(*name), inner),
        rest => (None, rest),
    };
    let (plural, name, subresource) = match rest {
        [plural] => (*plural, None, None),
        [plural, name] => (*plural, Some(*name), None),
        [plural, name, subresource] => (*plural, Some(*name), Some(*subresource)),
        _ => return None,
    };
    let kind = kinds.iter().find(|kind| kind.group == group && kind.version == version && kind.plural == plural)?;
    let fits = !matches!((kind.namespaced, namespace, name), (true, None, Some(_)) | (false, Some(_), _));
    let serves = match subresource {
        None => true,
        Some("status") => kind.status,
        Some("token") => kind.is_core("ServiceAccount"),
        Some("exec") => kind.is_core("Pod"),
        Some(_) => false,
    };
    (fits && serves).then(|| Place {
        kind: kind.clone(),
        namespace: namespace.map(str::to_owned),
        name: name.map(str::to_owned),
        subresource: subresource.map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube_api::kind::built_in;

    #[test]
    fn paths_lead_where_the_real_ones_do() {
        let check = |path: &str, expected: &str| {
            let found = place(path, &built_in()).map_or_else(String::new, |place| {
                let parts = [&place.namespace, &place.name, &place.subresource];
                let parts = parts.map(|part| part.as_deref().unwrap_or("-"));
                format!("{} {}", place.kind.kind, parts.join(" "))
            });
            assert_eq!(found, expected, "{path}");
        };
        check("/api/v1/pods", "Pod - - -");
        check("/api/v1/namespaces/shop/pods", "Pod shop - -");
        check("/api/v1/namespaces/shop/pods/web/status", "Pod shop web status");
        check("/api/v1/namespaces", "Namespace - - -");
        check("/api/v1/namespaces/shop", "Namespace - shop -");
        check("/api/v1/namespaces/shop/status", "Namespace - shop status");
        check("/apis/discovery.k8s.io/v1/endpointslices", "EndpointSlice - - -");
        check("/api/v1/namespaces/shop/serviceaccounts/web/token", "ServiceAccount shop web token");
        check("/api/v1/pods/web", "");
        check("/api/v1/namespaces/shop/nodes", "");
        check("/api/v1/namespaces/shop/configmaps/x/status", "");
        check("/apis/gateway.networking.k8s.io/v1/httproutes", "");
        check("/api/v2/pods", "");
    }

    #[test]
    fn a_query_is_decoded() {
        let query = query("labelSelector=app%3Dweb%2Ctier&watch=1&x=a+b&bad=%zz");
        assert_eq!(query["labelSelector"], "app=web,tier");
        assert_eq!((query["watch"].as_str(), query["x"].as_str(), query["bad"].as_str()), ("1", "a b", "%zz"));
    }

    #[test]
    fn forms_that_only_others_serve_are_told_apart() {
        let takes = |accept: &str| Request { accept: accept.to_owned(), ..Request::default() }.takes_json();
        assert!(takes("") && takes("*/*") && takes("application/json"));
        assert!(takes("application/json;as=Table;v=v1;g=meta.k8s.io,application/json"));
        assert!(!takes("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"));
        assert!(!takes("application/vnd.kubernetes.protobuf"));
    }
}
