#!/usr/bin/env bash
# Checks everything in this folder that can be checked without a cloud: format, validity, `terraform test` of every
# module and stack, and a policy scan. Works on a copy, leaves nothing behind, and says what it had to skip.
#
#   infra/check.sh              all of it (modules with the AWS provider: where $TF_PLUGIN_DIR or a registry has it)
#   infra/check.sh --plain      only what needs no provider: seconds, no network
set -uo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
plain=${1:-}
passed=0 failed=0 skipped=0
export CHECKPOINT_DISABLE=1 TF_IN_AUTOMATION=1 TF_CLI_ARGS=-no-color

pass() { passed=$((passed + 1)); echo "ok    $1"; }
skip() { skipped=$((skipped + 1)); echo "SKIP  $1: $2"; }
# check NAME COMMAND...: the command's output is shown only where it fails
check() {
  local name=$1; shift
  local said
  if said=$("$@" 2>&1); then pass "$name"; else failed=$((failed + 1)); echo "FAIL  $name"; sed 's/^/      /' <<< "$said" | tail -40; fi
}
finish() { echo "$passed passed, $failed failed, $skipped skipped"; [ "$failed" = 0 ]; }

if ! command -v terraform > /dev/null; then
  skip terraform "not on PATH; see https://developer.hashicorp.com/terraform/install"
  finish; exit
fi
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -r "$here/." "$copy"
find "$copy" \( -name .terraform -o -name '*.tfstate*' -o -name .terraform.lock.hcl \) -prune -exec rm -rf {} +

check "terraform fmt" terraform fmt -check -recursive "$here"
for script in "$copy"/*.sh "$copy"/*/*.sh; do
  [ -e "$script" ] && check "bash -n ${script#"$copy"/}" bash -n "$script"
done

needs_aws() { grep -rqsE 'hashicorp/aws' "$1"/*.tf || grep -rqsE 'source *= *"[./]+modules/aws_' "$1"/*.tf; }
init=(init -backend=false -input=false)
provider=no
if [ "$plain" != --plain ]; then
  if [ -n "${TF_PLUGIN_DIR:-}" ]; then provider=mirror
  elif curl -sfm 5 -o /dev/null https://registry.terraform.io/.well-known/terraform.json; then provider=registry; fi
fi

for folder in "$copy"/modules/*/ "$copy"/stacks/*/ "$copy"/tests/*/; do
  [ -e "$folder/main.tf" ] || continue
  name=${folder#"$copy"/}; name=${name%/}
  extra=()
  if needs_aws "$folder"; then
    [ "$plain" = --plain ] && continue
    if [ $provider = no ]; then skip "$name" "the AWS provider is not at hand: set TF_PLUGIN_DIR to a mirror, or allow the registry"; continue; fi
    [ $provider = mirror ] && extra=("-plugin-dir=$TF_PLUGIN_DIR")
  fi
  check "$name init" terraform -chdir="$folder" "${init[@]}" ${extra[@]+"${extra[@]}"}
  check "$name validate" terraform -chdir="$folder" validate
  if compgen -G "$folder/tests/*.tftest.hcl" > /dev/null; then
    if said=$(terraform -chdir="$folder" test 2>&1); then
      runs=$(grep -cE '^ +run ".*\.\.\. pass' <<< "$said")
      passed=$((passed + runs)); echo "ok    $name test ($runs runs)"
    else
      failed=$((failed + 1)); echo "FAIL  $name test"; sed 's/^/      /' <<< "$said" | tail -60
    fi
  fi
done

if [ "$plain" != --plain ]; then
  if command -v checkov > /dev/null; then
    check "policies (checkov)" checkov -d "$copy" --framework terraform --skip-download --quiet --compact \
      --external-checks-dir "$copy/policies"
  else
    skip "policies (checkov)" "not installed; in an environment of its own: pip install checkov"
  fi
fi
finish
