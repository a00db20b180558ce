//! The one call of Istio's CA API: `istio.v1.auth.IstioCertificateService/CreateCertificate`.
//!
//! Messages by hand after istio/api `security/v1alpha1/ca.proto` and protobuf's `struct.proto`, field for
//! field, so that istiod and istio-csr can stand on the other side.

use std::collections::BTreeMap;
use std::marker::PhantomData;

use prost::Message;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// Path of the call.
pub(super) const CREATE_CERTIFICATE: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
/// Metadata key by which a node's agent says for which workload it asks.
const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";
/// Largest message taken: a CSR, or a chain and sixteen roots.
pub(super) const MESSAGE_MAX_BYTES: usize = 64 * 1024;

/// `IstioCertificateRequest`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct CertificateRequest {
    /// PEM.
    #[prost(string, tag = "1")]
    pub(super) csr: String,
    /// Seconds.
    #[prost(int64, tag = "3")]
    pub(super) validity_duration: i64,
    #[prost(message, optional, tag = "4")]
    metadata: Option<Struct>,
}

/// `IstioCertificateResponse`: PEM, leaf first; the last entry holds the roots.
#[derive(Clone, PartialEq, Message)]
pub(super) struct CertificateResponse {
    #[prost(string, repeated, tag = "1")]
    pub(super) cert_chain: Vec<String>,
}

/// `google.protobuf.Struct`.
#[derive(Clone, PartialEq, Message)]
struct Struct {
    #[prost(btree_map = "string, message", tag = "1")]
    fields: BTreeMap<String, Value>,
}

/// `google.protobuf.Value`, of which only strings matter here; other kinds decode to `None`.
#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, optional, tag = "3")]
    string_value: Option<String>,
}

impl CertificateRequest {
    /// A request for `csr`, saying for whom it is when that is not the caller.
    pub(super) fn new(csr: &str, validity_seconds: i64, impersonated: Option<&str>) -> Self {
        let metadata = impersonated.map(|name| Struct {
            fields: [(IMPERSONATED_IDENTITY.to_owned(), Value { string_value: Some(name.to_owned()) })].into(),
        });
        Self { csr: csr.to_owned(), validity_duration: validity_seconds, metadata }
    }

    /// For whom the caller asks, if it says so.
    pub(super) fn impersonated(&self) -> Option<&str> {
        self.metadata.as_ref()?.fields.get(IMPERSONATED_IDENTITY)?.string_value.as_deref()
    }
}

/// Protobuf over tonic: encodes `E`, decodes `D`.
#[derive(Debug)]
pub(super) struct Protobuf<E, D>(PhantomData<fn() -> (E, D)>);

impl<E, D> Default for Protobuf<E, D> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<E: Message + 'static, D: Message + Default + 'static> Codec for Protobuf<E, D> {
    type Encode = E;
    type Decode = D;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self::default()
    }

    fn decoder(&mut self) -> Self {
        Self::default()
    }
}

impl<E: Message, D> Encoder for Protobuf<E, D> {
    type Item = E;
    type Error = Status;

    fn encode(&mut self, item: E, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(buffer).map_err(|e| Status::internal(e.to_string()))
    }
}

impl<E, D: Message + Default> Decoder for Protobuf<E, D> {
    type Item = D;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<D>, Status> {
        D::decode(buffer)
            .map(Some)
            .map_err(|e| Status::invalid_argument(format!("not a {CREATE_CERTIFICATE} message: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_the_bytes_of_istios_protobuf() {
        // csr = 1, validity_duration = 3, metadata = 4 { fields = 1 { key = 1, value = 2 { string = 3 } } }
        let bytes = CertificateRequest::new("c", 5, Some("x")).encode_to_vec();
        let name = b"ImpersonatedIdentity";
        let mut expected = vec![0x0a, 1, b'c', 0x18, 5, 0x22, 29, 0x0a, 27, 0x0a, 20];
        expected.extend(name);
        expected.extend([0x12, 3, 0x1a, 1, b'x']);
        assert_eq!(bytes, expected);
        assert_eq!(CertificateRequest::decode(&*bytes).unwrap().impersonated(), Some("x"));
    }

    #[test]
    fn metadata_of_another_kind_is_no_impersonation() {
        // The same with number_value = 2 (double) instead of the string.
        let mut bytes = vec![0x22, 35, 0x0a, 33, 0x0a, 20];
        bytes.extend(b"ImpersonatedIdentity");
        bytes.extend([0x12, 9, 0x11, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(CertificateRequest::decode(&*bytes).unwrap().impersonated(), None);
        assert_eq!(CertificateRequest::default().impersonated(), None);
    }
}
