//! Why the API server may have refused a token, by what the token says of itself.
//!
//! Nothing here is verified, and nothing here lets anybody in or keeps anybody out: it chooses the word for a refusal
//! that has been made, since the API server's own words are for people and change.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use super::outcome::CaOutcome;

/// The claims of RFC 7519 that tell something.
#[derive(Debug, Deserialize)]
struct Claims {
    #[serde(default)]
    aud: Audience,
    exp: Option<u64>,
}

/// One word or several (RFC 7519 §4.1.3).
#[derive(Debug, Default, Deserialize)]
#[serde(untagged)]
enum Audience {
    #[default]
    Nobody,
    One(String),
    Several(Vec<String>),
}

impl Audience {
    fn has(&self, audience: &str) -> bool {
        match self {
            Self::Nobody => false,
            Self::One(one) => one == audience,
            Self::Several(several) => several.iter().any(|one| one == audience),
        }
    }
}

/// The word and the sentence for a refused `token` that should have been for `audience`.
pub(super) fn why_refused(token: &str, audience: &str, now: SystemTime) -> (CaOutcome, String) {
    let Some(claims) = read(token) else {
        return (CaOutcome::TokenInvalid, "the token is no service account token".to_owned());
    };
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    if claims.exp.is_some_and(|end| end <= now) {
        return (CaOutcome::TokenExpired, "the token has expired".to_owned());
    }
    if !claims.aud.has(audience) {
        return (CaOutcome::TokenAudience, format!("the token is not for the audience {audience}"));
    }
    (CaOutcome::TokenInvalid, "the token is not good".to_owned())
}

fn read(token: &str) -> Option<Claims> {
    let payload = token.split('.').nth(1)?;
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_word_follows_the_claims() {
        let now = UNIX_EPOCH + Duration::from_secs(1000);
        let token = |payload: &str| format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(payload));
        for (token, word) in [
            (token(r#"{"aud":["ca"],"exp":999}"#), "token_expired"),
            (token(r#"{"aud":["other"],"exp":999}"#), "token_expired"),
            (token(r#"{"aud":["other","more"],"exp":1001}"#), "token_audience"),
            (token(r#"{"aud":"other","exp":1001}"#), "token_audience"),
            (token(r#"{"exp":1001}"#), "token_audience"),
            (token(r#"{"aud":"ca","exp":1001}"#), "token_invalid"),
            (token("[]"), "token_invalid"),
            ("no token".to_owned(), "token_invalid"),
            ("a.b.c".to_owned(), "token_invalid"),
        ] {
            assert_eq!(why_refused(&token, "ca", now).0.as_str(), word, "{token}");
        }
    }
}
