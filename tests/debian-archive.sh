# Finds the archive from which this machine itself gets Debian; to be sourced.

# Sets `codename`, `archive` and `key` (a keyring, or empty). Debian keeps all releases in one place. Needs `fail`.
find_archive() {
    codename=$(. /etc/os-release && [ "$ID" = debian ] && echo "$VERSION_CODENAME") ||
        fail "no Debian here, so no archive to make an image from"
    entry=$(apt-get indextargets --format '$(RELEASE)|$(REPO_URI)|$(SOURCESENTRY)' 'Created-By: Packages' |
        awk -F'|' -v r="$codename" '$1 == r' | head -n 1)
    [ -n "$entry" ] || fail "apt has no archive of $codename here, so there is none to make an image from"
    archive=$(echo "$entry" | cut -d'|' -f2)
    from=$(echo "$entry" | cut -d'|' -f3)
    key=$(sed -n 's/^[Ss]igned-[Bb]y: *\(\/.*\)/\1/p; s/.*\[.*signed-by=\([^] ]*\).*/\1/p' "${from%:*}" | head -n 1)
}
