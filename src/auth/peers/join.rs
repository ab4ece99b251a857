//! Proofs that a node may join: the join secret of the initial nodes, and tokens.
//!
//! No protocol of its own: from a secret follows a key, by HKDF, and so an authority that everybody who knows the
//! secret can be. Who joins signs itself a certificate with it, good for a short time. Whoever checks it needs to know the
//! secret as well, or only the public key that follows from it.
//!
//! A Kubernetes ServiceAccount token will be one more [`Proof`].

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use aws_lc_rs::signature::Ed25519KeyPair;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{Issuer, KeyPair, PKCS_ED25519};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use super::authority::{Fingerprint, Said, authority_parameters, node_parameters, public_key};

/// How long what is signed by a join authority is good; it is made anew at half of that.
pub(super) const SIGNED_FOR: Duration = Duration::from_secs(60 * 60);

/// The shortest join secret, in bytes.
const SECRET_MIN: usize = 32;

/// How the name of a token's authority begins; its id follows.
const TOKEN_NAME: &str = "flotilla join token ";

/// By what a node can prove that it may join.
pub(crate) enum Proof {
    /// It knows what the initial nodes know.
    Secret(JoinAuthority),
    /// It was given a token.
    Token(JoinAuthority, Token),
}

impl Proof {
    /// The authority that follows from the secret.
    pub(crate) fn authority(&self) -> &JoinAuthority {
        match self {
            Self::Secret(authority) | Self::Token(authority, _) => authority,
        }
    }

    /// What is in the file of the join secret.
    ///
    /// # Errors
    /// It is too short to be one.
    pub(crate) fn of_secret(content: &[u8]) -> anyhow::Result<Self> {
        let secret = content.trim_ascii();
        ensure!(
            secret.len() >= SECRET_MIN,
            "the join secret has {} bytes, and fewer than {SECRET_MIN} can be guessed: make one by `head -c 32 /dev/urandom | \
             base64`",
            secret.len()
        );
        let key = derived(secret, "flotilla join secret 1")?;
        // The name tells one secret from another before any signature does.
        let name = format!("flotilla join secret {}", &Fingerprint::of(key.public_key_raw()).to_string()[..8]);
        Ok(Self::Secret(JoinAuthority::new(key, &name)?))
    }

    /// What is in the file of a token.
    ///
    /// # Errors
    /// It is none.
    pub(crate) fn of_token(content: &[u8]) -> anyhow::Result<Self> {
        let token: Token = std::str::from_utf8(content).context("not a token")?.trim().parse()?;
        Ok(Self::Token(token.authority()?, token))
    }
}

/// An authority that everybody can be who knows a secret.
pub(crate) struct JoinAuthority {
    key: KeyPair,
    certificate: CertificateDer<'static>,
}

impl JoinAuthority {
    fn new(key: KeyPair, name: &str) -> anyhow::Result<Self> {
        let certificate = authority_parameters(name, SIGNED_FOR).self_signed(&key)?.der().clone();
        Ok(Self { key, certificate })
    }

    /// Its certificate, of which only name and key count.
    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// A node's certificate and key, for a short time.
    ///
    /// # Errors
    /// The library of cryptography fails.
    pub(crate) fn leaf(&self) -> anyhow::Result<(KeyPair, CertificateDer<'static>)> {
        let key = KeyPair::generate()?;
        let issuer = Issuer::from_ca_cert_der(&self.certificate, &self.key)?;
        let signed = node_parameters("flotilla node that joins", SIGNED_FOR).signed_by(&key, &issuer)?;
        Ok((key, signed.der().clone()))
    }

    /// Says of a cluster's authority that it is one, to nodes that only know the secret yet.
    ///
    /// # Errors
    /// The certificate is damaged.
    pub(crate) fn vouch_for(&self, authority: &CertificateDer<'_>) -> anyhow::Result<CertificateDer<'static>> {
        let said = Said::by(authority).context("not a certificate")?;
        let issuer = Issuer::from_ca_cert_der(&self.certificate, &self.key)?;
        let signed = authority_parameters(&said.subject, SIGNED_FOR).signed_by(&public_key(authority)?, &issuer)?;
        Ok(signed.der().clone())
    }
}

/// What lets one node join: `flotilla-join:<id>.<secret>.<fingerprint of the cluster's authority>`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) id: String,
    secret: Vec<u8>,
    pub(crate) fingerprint: Fingerprint,
}

impl Token {
    /// A new one, for the cluster whose authority has this fingerprint.
    pub(crate) fn make(fingerprint: Fingerprint) -> Self {
        let id = format!("{:016x}", rand::random::<u64>());
        Self { id, secret: rand::random::<[u8; 32]>().to_vec(), fingerprint }
    }

    /// The authority that follows from its secret.
    ///
    /// # Errors
    /// The library of cryptography fails.
    pub(crate) fn authority(&self) -> anyhow::Result<JoinAuthority> {
        let key = derived(&self.secret, &format!("flotilla join token 1 {}", self.id))?;
        JoinAuthority::new(key, &format!("{TOKEN_NAME}{}", self.id))
    }
}

/// The id of the token whose authority has this name.
pub(super) fn token_id(name: &str) -> Option<&str> {
    name.strip_prefix(TOKEN_NAME)
}

impl fmt::Display for Token {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "flotilla-join:{}.{}.{}", self.id, URL_SAFE_NO_PAD.encode(&self.secret), self.fingerprint)
    }
}

impl FromStr for Token {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let parse = || {
            let mut parts = text.strip_prefix("flotilla-join:")?.split('.');
            let (id, secret, fingerprint) = (parts.next()?, parts.next()?, parts.next()?);
            let id_is_good = id.len() == 16 && id.bytes().all(|digit| digit.is_ascii_hexdigit());
            let secret = URL_SAFE_NO_PAD.decode(secret).ok().filter(|secret| secret.len() >= SECRET_MIN)?;
            let fingerprint = Fingerprint::parse(fingerprint)?;
            (id_is_good && parts.next().is_none()).then(|| Self { id: id.to_owned(), secret, fingerprint })
        };
        parse().context("not a token: one begins with `flotilla-join:`, and `flotilla node token create` makes it")
    }
}

/// The key that follows from a secret. Each purpose has another one.
fn derived(secret: &[u8], purpose: &str) -> anyhow::Result<KeyPair> {
    let failed = |_| anyhow::anyhow!("no key can be derived");
    let mut seed = [0; 32];
    let extracted = Salt::new(HKDF_SHA256, b"flotilla").extract(secret);
    let purpose = [purpose.as_bytes()];
    extracted.expand(&purpose, HKDF_SHA256).and_then(|key| key.fill(&mut seed)).map_err(failed)?;
    let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| anyhow::anyhow!("no key of this seed"))?;
    let pkcs8 = pair.to_pkcs8v1().map_err(failed)?;
    Ok(KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(pkcs8.as_ref()), &PKCS_ED25519)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_secret_gives_the_same_authority_whatever_the_line_ends_with() -> anyhow::Result<()> {
        let key = |content: &[u8]| Ok::<_, anyhow::Error>(Proof::of_secret(content)?.authority().key.public_key_pem());
        let secret = b"0123456789abcdef0123456789abcdef";
        assert_eq!(key(secret)?, key(&[secret.as_slice(), b"\n"].concat())?);
        assert_ne!(key(secret)?, key(b"0123456789abcdef0123456789abcdeg")?);
        assert!(Proof::of_secret(b"too short to be good\n").is_err());
        Ok(())
    }

    #[test]
    fn a_derived_key_stays_what_it_is() -> anyhow::Result<()> {
        let key = derived(b"0123456789abcdef0123456789abcdef", "flotilla join secret 1")?;
        let hex: String = key.public_key_raw().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "14b58751f4c9b8a1da1180e4bc18ab46e2f44f69acfe17a52698a6bf562d5a56");
        Ok(())
    }

    #[test]
    fn tokens_are_read_as_they_are_written() -> anyhow::Result<()> {
        let token = Token::make(Fingerprint::of(b"authority"));
        let text = token.to_string();
        assert!(text.parse::<Token>()? == token);
        assert!(Proof::of_token(format!("{text}\n").as_bytes()).is_ok());
        for bad in ["", "flotilla-join:", &text[1..], &text[..text.len() - 1], &format!("{text}.x")] {
            assert!(bad.parse::<Token>().is_err(), "{bad}");
        }
        let said = Said::by(token.authority()?.certificate()).context("a certificate")?;
        assert_eq!(token_id(&said.subject), Some(token.id.as_str()));
        Ok(())
    }
}
