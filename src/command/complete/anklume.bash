# Completes anklume's command lines. Bash splits words at the characters of COMP_WORDBREAKS, such as = and @: the words
# that stand together are joined before anklume is asked, and what Bash holds fixed is taken off its answers.
_anklume() {
    local rest=$COMP_LINE words=() i word before fixed='' reply replies
    for ((i = 0; i <= COMP_CWORD; i++)); do
        before=$rest
        rest=${rest#"${rest%%[![:space:]]*}"}
        word=${COMP_WORDS[i]}
        if ((i == COMP_CWORD)); then
            # Up to the cursor.
            word=${word:0:COMP_POINT-(${#COMP_LINE}-${#rest})}
        fi
        if ((i > 0)) && [[ $before == "$rest" && -n $before ]]; then
            words[${#words[@]}-1]+=$word
        else
            words+=("$word")
        fi
        rest=${rest#"${COMP_WORDS[i]}"}
    done
    word=${words[${#words[@]}-1]}
    local quote=''
    if [[ $word == [\"\']* ]]; then
        # Within quotes, Readline replaces the whole word.
        quote=${word:0:1} word=${word:1}
        words[${#words[@]}-1]=$word
    fi
    for ((i = 0; i < ${#word}; i++)); do
        [[ -z $quote && $COMP_WORDBREAKS == *"${word:i:1}"* ]] || continue
        case ${word:i:1} in
        [=:]) fixed=${word:0:i+1} ;;
        # Readline lets a word begin with it.
        @) fixed=${word:0:i} ;;
        esac
    done
    COMPREPLY=()
    replies=$(
        VARIABLE=bash _CLAP_IFS=$'\n' _CLAP_COMPLETE_INDEX=$((${#words[@]} - 1)) \
            anklume -- "${words[@]}" 2>/dev/null
    ) || return 0
    while IFS= read -r reply; do
        [[ -n $reply ]] || continue
        reply=${reply#"$fixed"}
        # A name of a file may need quotes.
        [[ -n $quote || $reply != *[^[:alnum:]_./=:@,+%~-]* ]] || printf -v reply %q "$reply"
        COMPREPLY+=("$reply")
    done <<<"$replies"
    if ((${#COMPREPLY[@]} == 1)) && [[ ${COMPREPLY[0]} != *[=/:@] ]]; then
        compopt +o nospace 2>/dev/null
    fi
}
complete -o nospace -o nosort -o bashdefault -o default -F _anklume anklume
