//! The channel binding `tls-server-end-point`: <https://www.rfc-editor.org/rfc/rfc5929#section-4>.
//!
//! It ties the password exchange to the certificate of the TLS connection, so that nobody in between
//! can pass the exchange on, even where the certificate itself is not verified.

use rustls::crypto::hash::{Hash, HashAlgorithm};
use rustls::crypto::ring::cipher_suite::{TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384};

/// Signature algorithms of certificates, as encoded object identifiers, and the hash that the binding
/// takes: the signature's own, but SHA-256 in place of MD5 and SHA-1.
const ALGORITHMS: [(&[u8], HashAlgorithm); 7] = [
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x04", HashAlgorithm::SHA256), // md5WithRSAEncryption
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x05", HashAlgorithm::SHA256), // sha1WithRSAEncryption
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b", HashAlgorithm::SHA256), // sha256WithRSAEncryption
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0c", HashAlgorithm::SHA384), // sha384WithRSAEncryption
    (b"\x2a\x86\x48\xce\x3d\x04\x01", HashAlgorithm::SHA256),         // ecdsa-with-SHA1
    (b"\x2a\x86\x48\xce\x3d\x04\x03\x02", HashAlgorithm::SHA256),     // ecdsa-with-SHA256
    (b"\x2a\x86\x48\xce\x3d\x04\x03\x03", HashAlgorithm::SHA384),     // ecdsa-with-SHA384
];

const SEQUENCE: u8 = 0x30;
const OBJECT_IDENTIFIER: u8 = 0x06;

/// The binding for a certificate in DER; `None` where its signature has a hash that is not in the list.
pub(super) fn tls_server_end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    let oid = signature_algorithm(certificate)?;
    let (_, algorithm) = ALGORITHMS.iter().find(|(known, _)| *known == oid)?;
    Some(hasher(*algorithm)?.hash(certificate).as_ref().to_vec())
}

/// The hashes that come with the cipher suites in use.
fn hasher(algorithm: HashAlgorithm) -> Option<&'static dyn Hash> {
    [TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384]
        .into_iter()
        .filter_map(|suite| suite.tls13())
        .map(|suite| suite.common.hash_provider)
        .find(|hash| hash.algorithm() == algorithm)
}

/// `Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm SEQUENCE { OID, … }, signature }`
fn signature_algorithm(certificate: &[u8]) -> Option<&[u8]> {
    let (certificate, _) = element(certificate, SEQUENCE)?;
    let (_, rest) = element(certificate, SEQUENCE)?;
    let (algorithm, _) = element(rest, SEQUENCE)?;
    Some(element(algorithm, OBJECT_IDENTIFIER)?.0)
}

/// Content of the DER element at the front, and what follows it.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = bytes.split_first()?;
    let (&first, mut rest) = rest.split_first()?;
    if found != tag {
        return None;
    }
    let mut len = usize::from(first);
    if first & 0x80 != 0 {
        // A length of more than four bytes is longer than any certificate.
        let digits = usize::from(first & 0x7f);
        if digits > 4 {
            return None;
        }
        let (bytes, after) = rest.split_at_checked(digits)?;
        len = bytes.iter().fold(0, |len, &byte| (len << 8) | usize::from(byte));
        rest = after;
    }
    rest.split_at_checked(len)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn der(tag: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![tag, 0x82];
        bytes.extend_from_slice(&(content.len() as u16).to_be_bytes());
        bytes.extend_from_slice(content);
        bytes
    }

    fn certificate(oid: &[u8]) -> Vec<u8> {
        let algorithm = der(SEQUENCE, &[der(OBJECT_IDENTIFIER, oid), vec![5, 0]].concat());
        der(SEQUENCE, &[der(SEQUENCE, &[7; 300]), algorithm, vec![3, 1, 0]].concat())
    }

    #[test]
    fn takes_the_hash_of_the_signature() {
        for (oid, algorithm) in ALGORITHMS {
            let binding = tls_server_end_point(&certificate(oid)).expect("a known algorithm");
            let len = if algorithm == HashAlgorithm::SHA384 { 48 } else { 32 };
            assert_eq!(binding.len(), len);
        }
        assert_eq!(tls_server_end_point(&certificate(b"\x2b\x65\x70")), None, "Ed25519 has none");
        assert_eq!(tls_server_end_point(b"no certificate"), None);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..60), cut in 0_usize..400) {
            let _ = tls_server_end_point(&[&[SEQUENCE], bytes.as_slice()].concat());
            let whole = certificate(ALGORITHMS[0].0);
            let _ = tls_server_end_point(&whole[..cut.min(whole.len())]);
        }
    }
}
