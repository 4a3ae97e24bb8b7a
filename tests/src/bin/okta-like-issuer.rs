//! A local OIDC issuer that answers as an Okta custom authorization server does, for
//! demonstrations and tests. It mints whatever it is asked for: never give it to a real host.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use interceptor_tests::issuer::{Algorithm, Client, Issuer, Mint, Options, Sign, State};
use serde_json::{Map, Value};

/// A local issuer that answers as an Okta custom authorization server does.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    serve: Serve,
}

#[derive(Subcommand)]
enum Verb {
    /// Prints a token signed with the keys in the directory.
    Mint(MintArgs),
    /// Signs with a new key from now on.
    Rotate {
        /// The directory of the issuer.
        #[arg(long)]
        state: PathBuf,
        /// Withdraw the old keys at once.
        #[arg(long)]
        emergency: bool,
    },
}

#[derive(Args)]
struct Serve {
    /// Loopback address to listen on; port 0 takes any free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Directory for keys and clients.
    #[arg(long)]
    state: Option<PathBuf>,
    /// Serve https; the certificate to trust is ca.pem in the directory.
    #[arg(long)]
    tls: bool,
    /// What tokens are signed with.
    #[arg(long, value_enum, default_value = "RS256")]
    algorithm: Algorithm,
    /// Default audience.
    #[arg(long, default_value = "api://default")]
    audience: String,
    /// A client, as JSON: {"id": …, "secret": …, "jwk": …, "scopes": […], "claims": {…}}.
    #[arg(long = "client", value_parser = parse::<Client>)]
    clients: Vec<Client>,
}

#[derive(Args)]
struct MintArgs {
    /// The directory of the issuer.
    #[arg(long)]
    state: PathBuf,
    /// Claims to set, as a JSON object; null takes one out.
    #[arg(long, default_value = "{}", value_parser = parse::<Map<String, Value>>)]
    claims: Map<String, Value>,
    /// Header members to set, as a JSON object; null takes one out.
    #[arg(long, default_value = "{}", value_parser = parse::<Map<String, Value>>)]
    header: Map<String, Value>,
    /// With what to sign.
    #[arg(long, value_enum, default_value = "current")]
    sign: Sign,
    /// Seconds since it was issued.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    age: i64,
    /// Seconds from issue to expiry.
    #[arg(long, allow_negative_numbers = true)]
    lifetime: Option<i64>,
}

fn parse<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|e| e.to_string())
}

#[tokio::main]
async fn main() -> Result<()> {
    let cli = Cli::parse();
    match cli.verb {
        None => serve(cli.serve).await,
        Some(Verb::Rotate { state, emergency }) => State::open(&state)?.rotate(emergency),
        Some(Verb::Mint(args)) => {
            let MintArgs { state, claims, header, sign, age, lifetime } = args;
            let token = State::open(&state)?.mint(&Mint { claims, header, sign, age, lifetime })?;
            println!("{token}");
            Ok(())
        }
    }
}

async fn serve(args: Serve) -> Result<()> {
    let state = args.state.context("--state DIR: where shall keys and clients live?")?;
    let issuer = Issuer::start(Options {
        listen: args.listen,
        tls: args.tls,
        algorithm: args.algorithm,
        state: Some(state),
        audience: args.audience,
        clients: args.clients,
    })
    .await?;
    println!("{}", issuer.url());
    issuer.serve_forever().await;
    Ok(())
}
