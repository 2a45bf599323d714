# bash completion of cplayground(1); installed as bash-completion/completions/cplayground

_cplayground() {
    local line found=()
    COMPREPLY=()
    # In the line, "=" is a word of its own: the last word is completed without what is before it.
    local words=() word before=""
    for word in "${COMP_WORDS[@]:1:COMP_CWORD}"; do
        if [[ $word == "=" || $before == "=" ]]; then
            words[${#words[@]} - 1]+=$word
        else
            words+=("$word")
        fi
        before=$word
    done
    while IFS= read -r line; do
        found+=("$line")
    done < <("${COMP_WORDS[0]}" __complete "${words[@]}" 2>/dev/null)
    if [[ ${found[0]-} == ":files" ]]; then
        compopt -o filenames 2>/dev/null
        word=${COMP_WORDS[COMP_CWORD]}
        while IFS= read -r line; do
            COMPREPLY+=("$line")
        done < <(compgen -f -- "${word#=}")
        return
    fi
    for line in "${found[@]}"; do
        # After "--color" "=" the shell replaces what follows the "=" alone.
        [[ ${words[${#words[@]} - 1]} == --*=* ]] && line=${line#*=}
        COMPREPLY+=("$line")
    done
}

complete -F _cplayground cplayground
