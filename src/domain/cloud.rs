//! Microsoft's clouds: which hosts and token scopes belong together. A token of one cloud is worth nothing in another.
//!
//! An overridden host (a proxy, the emulator) keeps the cloud's scope: whoever checks the token knows the audience of
//! the cloud, not the name of our proxy.

use std::fmt;
use std::str::FromStr;

/// A Microsoft cloud, under the name that the configuration uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Cloud {
    /// The public cloud; GCC uses it too.
    #[default]
    Global,
    /// US Government L4, "GCC High".
    UsGovHigh,
    /// US Government L5, Department of Defense.
    UsDod,
    /// China, operated by 21Vianet. Graph serves no incidents there.
    China,
}

impl Cloud {
    /// All of them.
    pub const ALL: [Cloud; 4] = [Cloud::Global, Cloud::UsGovHigh, Cloud::UsDod, Cloud::China];

    /// The name in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Cloud::Global => "global",
            Cloud::UsGovHigh => "us-gov-high",
            Cloud::UsDod => "us-dod",
            Cloud::China => "china",
        }
    }

    /// Where tokens come from.
    pub const fn login_url(self) -> &'static str {
        match self {
            Cloud::Global => "https://login.microsoftonline.com",
            Cloud::UsGovHigh | Cloud::UsDod => "https://login.microsoftonline.us",
            Cloud::China => "https://login.partner.microsoftonline.cn",
        }
    }

    /// What issues tokens of version 1, whatever host they come from.
    pub const fn sts_url(self) -> &'static str {
        match self {
            Cloud::Global | Cloud::UsGovHigh | Cloud::UsDod => "https://sts.windows.net",
            Cloud::China => "https://sts.chinacloudapi.cn",
        }
    }

    /// Microsoft Graph.
    pub const fn graph_url(self) -> &'static str {
        match self {
            Cloud::Global => "https://graph.microsoft.com",
            Cloud::UsGovHigh => "https://graph.microsoft.us",
            Cloud::UsDod => "https://dod-graph.microsoft.us",
            Cloud::China => "https://microsoftgraph.chinacloudapi.cn",
        }
    }

    /// Azure Resource Manager.
    pub const fn arm_url(self) -> &'static str {
        match self {
            Cloud::Global => "https://management.azure.com",
            Cloud::UsGovHigh | Cloud::UsDod => "https://management.usgovcloudapi.net",
            Cloud::China => "https://management.chinacloudapi.cn",
        }
    }

    /// The token scope for Graph.
    pub const fn graph_scope(self) -> &'static str {
        match self {
            Cloud::Global => "https://graph.microsoft.com/.default",
            Cloud::UsGovHigh => "https://graph.microsoft.us/.default",
            Cloud::UsDod => "https://dod-graph.microsoft.us/.default",
            Cloud::China => "https://microsoftgraph.chinacloudapi.cn/.default",
        }
    }

    /// The token scope for Azure Resource Manager.
    pub const fn arm_scope(self) -> &'static str {
        match self {
            Cloud::Global => "https://management.azure.com/.default",
            Cloud::UsGovHigh | Cloud::UsDod => "https://management.usgovcloudapi.net/.default",
            Cloud::China => "https://management.chinacloudapi.cn/.default",
        }
    }

    /// The token scope for Azure Key Vault.
    pub const fn vault_scope(self) -> &'static str {
        match self {
            Cloud::Global => "https://vault.azure.net/.default",
            Cloud::UsGovHigh | Cloud::UsDod => "https://vault.usgovcloudapi.net/.default",
            Cloud::China => "https://vault.azure.cn/.default",
        }
    }

    /// Whether Graph serves Defender incidents there.
    pub const fn has_incidents(self) -> bool {
        !matches!(self, Cloud::China)
    }
}

impl fmt::Display for Cloud {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// No cloud has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no cloud is called {0:?}: use global, us-gov-high, us-dod or china")]
pub struct UnknownCloud(pub String);

impl FromStr for Cloud {
    type Err = UnknownCloud;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Cloud::ALL
            .into_iter()
            .find(|cloud| cloud.as_str() == text)
            .ok_or_else(|| UnknownCloud(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_is_the_clouds_own_host() {
        for cloud in Cloud::ALL {
            assert_eq!(cloud.as_str().parse(), Ok(cloud));
            assert_eq!(cloud.graph_scope(), format!("{}/.default", cloud.graph_url()));
            assert_eq!(cloud.arm_scope(), format!("{}/.default", cloud.arm_url()));
        }
        assert!("Global".parse::<Cloud>().is_err());
    }
}
