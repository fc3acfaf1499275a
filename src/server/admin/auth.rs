//! The bearer token.

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;

/// What a client must send.
pub(super) struct Token(String);

impl Token {
    pub(super) fn new(token: String) -> Token {
        Token(token)
    }

    /// Whether `Authorization: Bearer …` carries it. Takes as long for a good beginning as for a bad one.
    pub(super) fn admits(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(AUTHORIZATION).map(|value| value.as_bytes());
        let Some(given) = given.and_then(|value| value.strip_prefix(b"Bearer ")) else { return false };
        let differences = self.0.bytes().zip(given).fold(0, |differences, (a, b)| differences | (a ^ b));
        self.0.len() == given.len() && std::hint::black_box(differences) == 0
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn only_the_whole_token_is_admitted() {
        let token = Token::new("s3crét".to_owned());
        for (given, admitted) in [
            ("Bearer s3crét", true),
            ("Bearer s3crét ", false),
            ("Bearer s3cr", false),
            ("Bearer ", false),
            ("bearer s3crét", false),
            ("s3crét", false),
            ("Basic s3crét", false),
        ] {
            let value = HeaderValue::from_bytes(given.as_bytes()).expect("a header value");
            let headers = HeaderMap::from_iter([(AUTHORIZATION, value)]);
            assert_eq!(token.admits(&headers), admitted, "{given}");
        }
        assert!(!token.admits(&HeaderMap::new()));
    }
}
