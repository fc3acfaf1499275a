//! The address of a database: contract 5.1.

use std::fmt;

use percent_encoding::percent_decode_str;

use crate::postgres::SslMode;

const PORT_DEFAULT: u16 = 5432;

/// `postgres://user[:password]@host[:port]/[database][?sslmode=…]`.
///
/// Neither `Debug` nor `Display` shows the password.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl {
    user: String,
    password: Option<String>,
    /// A name or an address, IPv6 without its brackets.
    host: String,
    port: u16,
    database: String,
    ssl_mode: SslMode,
}

/// Why a database address was refused. The texts never quote the address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    #[error("the database URL must start with postgres:// or postgresql://")]
    Scheme,
    #[error("the database URL names no user")]
    MissingUser,
    #[error("the database URL names no host")]
    MissingHost,
    #[error("the port in the database URL is not a number from 1 to 65535")]
    Port,
    #[error("the {0} in the database URL is not percent-encoded UTF-8 without a zero byte")]
    Encoding(&'static str),
    #[error("the database URL must not hold the parameter \"replication\"")]
    Replication,
    #[error("invalid sslmode: use disable, allow, prefer or require")]
    SslMode,
    #[error(
        "sslmode={0} is not supported: set ELECTRIC_DATABASE_CA_CERTIFICATE_FILE to have the server's certificate verified"
    )]
    SslModeVerify(&'static str),
}

impl DatabaseUrl {
    /// Parses an address. Unknown parameters are ignored.
    ///
    /// # Errors
    /// The first rule that the text breaks.
    pub fn parse(text: &str) -> Result<DatabaseUrl, UrlError> {
        let rest = text
            .strip_prefix("postgresql://")
            .or_else(|| text.strip_prefix("postgres://"))
            .ok_or(UrlError::Scheme)?;
        let rest = rest.split('#').next().unwrap_or_default();
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        // A password may hold an unencoded `@` or `/`; the host never holds `@`.
        let (credentials, location) = rest.rsplit_once('@').ok_or(UrlError::MissingUser)?;
        let (address, database) = location.split_once('/').unwrap_or((location, ""));
        let (user, password) = match credentials.split_once(':') {
            Some((user, password)) => (user, Some(decode(password, "password")?)),
            None => (credentials, None),
        };
        let user = decode(user, "user")?;
        if user.is_empty() {
            return Err(UrlError::MissingUser);
        }
        let (host, port) = split_address(address)?;
        let database = if database.is_empty() { user.clone() } else { decode(database, "database")? };
        Ok(DatabaseUrl { user, password, host, port, database, ssl_mode: ssl_mode_of(query)? })
    }

    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    pub(crate) fn password(&self) -> Option<&str> {
        self.password.as_deref()
    }

    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    #[must_use]
    pub fn database(&self) -> &str {
        &self.database
    }

    #[must_use]
    pub fn ssl_mode(&self) -> SslMode {
        self.ssl_mode
    }

    /// The same server and role, another database.
    #[must_use]
    pub fn with_database(&self, database: &str) -> DatabaseUrl {
        DatabaseUrl { database: database.to_owned(), ..self.clone() }
    }

    /// User, password, database and application name for the SQL client. Host, port and TLS are the
    /// business of [`crate::postgres::connect`].
    #[must_use]
    pub fn to_config(&self) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config.user(&self.user).dbname(&self.database).application_name("shapefold");
        if let Some(password) = &self.password {
            config.password(password);
        }
        config
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let password = if self.password.is_some() { ":***" } else { "" };
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(
            f,
            "postgresql://{}{password}@{open}{}{close}:{}/{}?sslmode={}",
            self.user, self.host, self.port, self.database, self.ssl_mode
        )
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseUrl({self})")
    }
}

fn split_address(address: &str) -> Result<(String, u16), UrlError> {
    let (host, port) = match address.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or(UrlError::MissingHost)?;
            let port = if port.is_empty() { "" } else { port.strip_prefix(':').ok_or(UrlError::Port)? };
            (host, port)
        }
        None => address.split_once(':').unwrap_or((address, "")),
    };
    let host = decode(host, "host")?;
    if host.is_empty() {
        return Err(UrlError::MissingHost);
    }
    let port = match port {
        "" => PORT_DEFAULT,
        digits if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse().map_err(|_| UrlError::Port)?,
        _ => return Err(UrlError::Port),
    };
    if port == 0 {
        return Err(UrlError::Port);
    }
    Ok((host, port))
}

fn ssl_mode_of(query: &str) -> Result<SslMode, UrlError> {
    let mut mode = SslMode::Prefer;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        match key {
            "replication" => return Err(UrlError::Replication),
            "sslmode" => {
                mode = match value {
                    "disable" => SslMode::Disable,
                    "allow" => SslMode::Allow,
                    "prefer" => SslMode::Prefer,
                    "require" => SslMode::Require,
                    "verify-ca" => return Err(UrlError::SslModeVerify("verify-ca")),
                    "verify-full" => return Err(UrlError::SslModeVerify("verify-full")),
                    _ => return Err(UrlError::SslMode),
                };
            }
            _ => {}
        }
    }
    Ok(mode)
}

/// The protocol ends strings with a zero byte, so none can hold one.
fn decode(text: &str, part: &'static str) -> Result<String, UrlError> {
    let decoded = percent_decode_str(text).decode_utf8().map_err(|_| UrlError::Encoding(part))?;
    if decoded.contains('\0') {
        return Err(UrlError::Encoding(part));
    }
    Ok(decoded.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        match DatabaseUrl::parse(text) {
            Ok(url) => url.to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn parses_the_forms_of_the_contract() {
        for (text, expected) in [
            ("postgresql://u:p@h:5433/d", "postgresql://u:***@h:5433/d?sslmode=prefer"),
            ("postgres://u@h", "postgresql://u@h:5432/u?sslmode=prefer"),
            ("postgres://u@h/", "postgresql://u@h:5432/u?sslmode=prefer"),
            ("postgres://u@[::1]:6/d?sslmode=disable", "postgresql://u@[::1]:6/d?sslmode=disable"),
            ("postgres://u@[::1]/d?sslmode=allow&x=y", "postgresql://u@[::1]:5432/d?sslmode=allow"),
            (
                "postgres://a%40b:c%2Fd@h/e%20f?sslmode=require",
                "postgresql://a@b:***@h:5432/e f?sslmode=require",
            ),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
        let url = DatabaseUrl::parse("postgres://u:a%40b:c@h/d").expect("an address");
        assert_eq!(url.password(), Some("a@b:c"));
        assert!(!format!("{url:?}").contains("a@b"));
    }

    #[test]
    fn refuses_the_rest() {
        for (text, error) in [
            ("mysql://u@h/d", UrlError::Scheme),
            ("postgres://h/d", UrlError::MissingUser),
            ("postgres://:p@h/d", UrlError::MissingUser),
            ("postgres://u@/d", UrlError::MissingHost),
            ("postgres://u@[::1/d", UrlError::MissingHost),
            ("postgres://u@h:0/d", UrlError::Port),
            ("postgres://u@h:+1/d", UrlError::Port),
            ("postgres://u@h:65536/d", UrlError::Port),
            ("postgres://u:%ff@h/d", UrlError::Encoding("password")),
            ("postgres://u@h/d%00", UrlError::Encoding("database")),
            ("postgres://u@h/d?replication=database", UrlError::Replication),
            ("postgres://u@h/d?sslmode=on", UrlError::SslMode),
            ("postgres://u@h/d?sslmode=verify-full", UrlError::SslModeVerify("verify-full")),
        ] {
            assert_eq!(DatabaseUrl::parse(text), Err(error), "{text}");
        }
    }
}
